#include "lora/adapters/counter_random.h"

namespace moetune {
namespace {

constexpr uint64_t kGolden = 0x9e3779b97f4a7c15ull;
constexpr uint64_t kMix1 = 0xbf58476d1ce4e5b9ull;
constexpr uint64_t kMix2 = 0x94d049bb133111ebull;

uint64_t mix(uint64_t z) {
  z = (z ^ (z >> 30)) * kMix1;
  z = (z ^ (z >> 27)) * kMix2;
  return z ^ (z >> 31);
}

// torch has signed 64-bit integers only: products wrap alike, a logical shift is an arithmetic one with the sign bits
// cut off.
at::Tensor xor_shift(const at::Tensor& z, int bits) {
  return z.bitwise_xor(z.bitwise_right_shift(bits).bitwise_and((int64_t{1} << (64 - bits)) - 1));
}

}  // namespace

uint64_t stream_key(uint64_t seed, std::string_view name) {
  uint64_t key = mix(seed + kGolden);
  for (unsigned char c : name) key = mix(key ^ (c + kGolden));
  return key;
}

uint64_t stream_key(uint64_t key, int64_t number) { return mix(key ^ mix(static_cast<uint64_t>(number) + kGolden)); }

at::Tensor counter_uniform(uint64_t key, int64_t first, int64_t count, at::Device device) {
  return counter_uniform_at(key, at::arange(first, first + count, at::TensorOptions(at::kLong).device(device)));
}

at::Tensor counter_uniform_at(uint64_t key, const at::Tensor& element) {
  at::Tensor z = (element + 1).mul_(static_cast<int64_t>(kGolden)).add_(static_cast<int64_t>(key));
  z = xor_shift(z, 30).mul_(static_cast<int64_t>(kMix1));
  z = xor_shift(z, 27).mul_(static_cast<int64_t>(kMix2));
  z = xor_shift(z, 31);
  return z.bitwise_right_shift(40).bitwise_and_((1 << 24) - 1).to(at::kFloat).mul_(1.0 / (1 << 24));
}

}  // namespace moetune
