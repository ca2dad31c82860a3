// Rotary position embedding with YaRN (Su et al. 2021; Peng et al. 2023), DeepSeek's interleaved pairs.
//
//   Rope rope(blueprint.rotary, device);
//   RopeAngles angles = rope.angles(slice.position_T, compute);
//   at::Tensor q = rotate(q_rope_THA, angles);
//
// On disk the features of a head lie in pairs (2i, 2i+1). The rotated halves are returned as [all first, all second]:
// every dot product of two vectors rotated so is that of the interleaved layout.
#pragma once

#include <torch/types.h>

#include "moe/blueprint.h"

namespace moetune {

struct RopeAngles {
  at::Tensor cos_TA;  ///< [T, rope_dim / 2], compute dtype, already times the attention factor
  at::Tensor sin_TA;
};

class Rope {
 public:
  Rope(const RotarySpec& spec, at::Device device);
  /// Angles of positions (int64 [T]); computed in fp32 as the reference does.
  RopeAngles angles(const at::Tensor& position_T, at::ScalarType compute) const;
  const at::Tensor& inverse_frequencies() const { return inverse_frequency_; }

 private:
  at::Tensor inverse_frequency_;  // fp32 [rope_dim / 2]
  double attention_factor_;
};

/// x_THA [T, heads, rope_dim] -> rotated, first halves then second halves.
at::Tensor rotate(const at::Tensor& x_THA, const RopeAngles& angles);

}  // namespace moetune
