// Rotary features written out in plain operations, for comparisons.
#pragma once

#include <vector>

#include "moe/attention/rope.h"
#include "tests/support/numbers.h"

namespace moetune {

inline constexpr RotarySpec::Layout kLayouts[] = {RotarySpec::Layout::kPairs, RotarySpec::Layout::kHalves};

/// Angles of any rows, cosine and sine of their own: not every rotation is one, and the tests need none.
inline RopeAngles some_angles(int64_t rows, int64_t half, RotarySpec::Layout layout, uint64_t seed = 50) {
  return {random_normal({rows, half}, seed), random_normal({rows, half}, seed + 1), layout};
}

inline RopeAngles angles_as(const RopeAngles& angles, at::TensorOptions options) {
  return {angles.cos_TA.to(options), angles.sin_TA.to(options), angles.layout};
}

/// x [rows, heads, width]: of each head features first .. first + 2 half - 1 turned, pair by pair.
inline at::Tensor rotation_written_out(const at::Tensor& x, int64_t first, const RopeAngles& angles) {
  const int64_t half = angles.cos_TA.size(1), width = x.size(2);
  const bool pairs = angles.layout == RotarySpec::Layout::kPairs;
  std::vector<at::Tensor> a, b;
  for (int64_t i = 0; i < half; ++i) {
    const at::Tensor p = x.select(2, first + (pairs ? 2 * i : i)),
                     q = x.select(2, first + (pairs ? 2 * i + 1 : half + i));
    const at::Tensor cos = angles.cos_TA.narrow(1, i, 1), sin = angles.sin_TA.narrow(1, i, 1);
    a.push_back(p * cos - q * sin);
    b.push_back(q * cos + p * sin);
  }
  a.insert(a.end(), b.begin(), b.end());
  return at::cat({x.narrow(2, 0, first), at::stack(a, 2), x.narrow(2, first + 2 * half, width - first - 2 * half)}, 2);
}

}  // namespace moetune
