#include "lora/adapters/counter_random.h"

#include "parallel/base/splitmix64.h"

namespace moetune {
namespace {

// torch has signed 64-bit integers only: products wrap alike, a logical shift is an arithmetic one with the sign bits
// cut off.
at::Tensor xor_shift(const at::Tensor& z, int bits) {
  return z.bitwise_xor(z.bitwise_right_shift(bits).bitwise_and((int64_t{1} << (64 - bits)) - 1));
}

}  // namespace

uint64_t stream_key(uint64_t seed, std::string_view name) {
  uint64_t key = splitmix64_at(seed, 0);
  for (unsigned char c : name) key = splitmix64_mix(key ^ (c + kSplitMixGolden));
  return key;
}

uint64_t stream_key(uint64_t key, int64_t number) {
  return splitmix64_mix(key ^ splitmix64_at(static_cast<uint64_t>(number), 0));
}

at::Tensor counter_uniform(uint64_t key, int64_t first, int64_t count, at::Device device) {
  return counter_uniform_at(key, at::arange(first, first + count, at::TensorOptions(at::kLong).device(device)));
}

at::Tensor counter_uniform_at(uint64_t key, const at::Tensor& element) {
  at::Tensor z = (element + 1).mul_(static_cast<int64_t>(kSplitMixGolden)).add_(static_cast<int64_t>(key));
  z = xor_shift(z, 30).mul_(static_cast<int64_t>(kSplitMix1));
  z = xor_shift(z, 27).mul_(static_cast<int64_t>(kSplitMix2));
  z = xor_shift(z, 31);
  return z.bitwise_right_shift(40).bitwise_and_((1 << 24) - 1).to(at::kFloat).mul_(1.0 / (1 << 24));
}

}  // namespace moetune
