// CRC-32C (Castagnoli), the checksum of TensorBoard's records.
#pragma once

#include <cstdint>
#include <string_view>

namespace moetune {

/// Reflected polynomial 0x82f63b78, initial value and final xor 0xffffffff (RFC 3720, appendix B.4):
/// crc32c("123456789") == 0xe3069283.
std::uint32_t crc32c(std::string_view bytes);

}  // namespace moetune
