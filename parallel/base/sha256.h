// SHA-256, the digest of manifests and of frozen weights.
//
//   Sha256 digest;
//   digest.update(data, size);
//   const std::string hex = digest.hex();
//   MT_CHECK(sha256_of_file(path) == recorded, path, " changed");
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <string_view>

struct evp_md_ctx_st;  // OpenSSL's digest state

namespace moetune {

class InputFile;

using Sha256Bytes = std::array<std::uint8_t, 32>;

/// The digest of bytes that arrive in pieces (FIPS 180-4).
class Sha256 {
 public:
  Sha256();
  void update(const void* data, std::size_t size);
  /// Ends the digest: nothing more after it.
  Sha256Bytes bytes();
  /// The same as 64 lower-case hexadecimal digits.
  std::string hex();

 private:
  std::unique_ptr<evp_md_ctx_st, void (*)(evp_md_ctx_st*)> state_;
};

/// The digest of a regular file, read in pieces; UserError if it cannot be read.
std::string sha256_of_file(const std::string& path);
std::string sha256_of_file(const InputFile& file);
std::string sha256_of(std::string_view bytes);
Sha256Bytes sha256_of(const void* data, std::size_t size);

}  // namespace moetune
