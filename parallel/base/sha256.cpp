#include "parallel/base/sha256.h"

#include <openssl/evp.h>

#include <algorithm>
#include <cstdint>
#include <vector>

#include "parallel/base/error.h"
#include "parallel/base/files.h"

namespace moetune {

Sha256::Sha256() : state_(EVP_MD_CTX_new(), EVP_MD_CTX_free) {
  MT_CHECK(state_ != nullptr && EVP_DigestInit_ex(state_.get(), EVP_sha256(), nullptr) == 1,
           "OpenSSL offers no SHA-256");
}

void Sha256::update(const void* data, std::size_t size) {
  MT_CHECK(state_ != nullptr, "update() after the end");
  MT_CHECK(EVP_DigestUpdate(state_.get(), data, size) == 1, "OpenSSL failed on ", size, " bytes");
}

Sha256Bytes Sha256::bytes() {
  MT_CHECK(state_ != nullptr, "the digest has ended before");
  Sha256Bytes bytes;
  unsigned int length = 0;
  MT_CHECK(EVP_DigestFinal_ex(state_.get(), bytes.data(), &length) == 1 && length == bytes.size(), "digest of ", length,
           " bytes");
  state_.reset();
  return bytes;
}

std::string Sha256::hex() {
  constexpr char kDigits[] = "0123456789abcdef";
  std::string text;
  for (const std::uint8_t byte : bytes()) {
    text += kDigits[byte >> 4];
    text += kDigits[byte & 15];
  }
  return text;
}

std::string sha256_of_file(const std::string& path) { return sha256_of_file(InputFile(path)); }

std::string sha256_of_file(const InputFile& file) {
  std::vector<char> piece(std::min<std::uint64_t>(file.size(), 4 << 20));
  Sha256 digest;
  for (std::uint64_t offset = 0; offset < file.size(); offset += piece.size()) {
    const std::uint64_t count = std::min<std::uint64_t>(piece.size(), file.size() - offset);
    file.read(offset, piece.data(), count);
    digest.update(piece.data(), count);
  }
  return digest.hex();
}

std::string sha256_of(std::string_view bytes) {
  Sha256 digest;
  digest.update(bytes.data(), bytes.size());
  return digest.hex();
}

Sha256Bytes sha256_of(const void* data, std::size_t size) {
  Sha256 digest;
  digest.update(data, size);
  return digest.bytes();
}

}  // namespace moetune
