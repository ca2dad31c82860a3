#include "trainer/update/stochastic_rounding.h"

#include <ATen/Parallel.h>

#include <algorithm>
#include <bit>

#include "parallel/base/error.h"
#include "parallel/base/splitmix64.h"

namespace moetune {
namespace {

constexpr int64_t kGrain = int64_t{1} << 16;

/// A bijection of 32-bit integers whose bits look independent (Wellons 2018, "lowbias32"): two products, in vectors.
inline uint32_t mixed(uint32_t x) {
  x = (x ^ (x >> 16)) * 0x7feb352du;
  x = (x ^ (x >> 15)) * 0x846ca68bu;
  return x ^ (x >> 16);
}

inline uint16_t rounded(float number, uint32_t draw) {
  const uint32_t bits = std::bit_cast<uint32_t>(number);
  const uint32_t finite = (bits + (draw & 0xffffu)) >> 16;
  // A NaN must not become an infinity, nor an infinity a NaN.
  const uint32_t odd = (bits >> 16) | ((bits & 0xffffu) != 0 ? 0x40u : 0u);
  return static_cast<uint16_t>((bits & 0x7f800000u) == 0x7f800000u ? odd : finite);
}

/// Numbers whose places agree but for their lowest 32 bits, which begin with `first`.
void round_run(const float* from, uint16_t* to, int64_t count, uint32_t key, uint32_t first) {
  for (int64_t i = 0; i < count; ++i) {
    to[i] = rounded(from[i], mixed((first + static_cast<uint32_t>(i)) ^ key));
  }
}

}  // namespace

void round_stochastically(const at::Tensor& numbers, const at::Tensor& target, uint64_t key, int64_t first) {
  MT_CHECK(numbers.scalar_type() == at::kFloat && target.scalar_type() == at::kBFloat16 &&
               numbers.numel() == target.numel() && numbers.is_contiguous() && target.is_contiguous(),
           "rounding ", numbers.numel(), " numbers of ", c10::toString(numbers.scalar_type()), " to ", target.numel(),
           " of ", c10::toString(target.scalar_type()));
  const float* from = numbers.const_data_ptr<float>();
  auto* to = reinterpret_cast<uint16_t*>(target.mutable_data_ptr<at::BFloat16>());
  at::parallel_for(0, numbers.numel(), kGrain, [&](int64_t begin, int64_t end) {
    while (begin < end) {
      const auto place = static_cast<uint64_t>(first + begin);
      const uint64_t high = place >> 32;
      const auto count = std::min(end - begin, static_cast<int64_t>(((high + 1) << 32) - place));
      const auto run_key = static_cast<uint32_t>(splitmix64_at(key, high));
      round_run(from + begin, to + begin, count, run_key, static_cast<uint32_t>(place));
      begin += count;
    }
  });
}

}  // namespace moetune
