// Rotary position embedding (Su et al. 2021), plain, with YaRN (Peng et al. 2023) or as Llama 3.1 stretches it.
//
//   Rope rope(blueprint.rotary, device);
//   RopeAngles angles = rope.angles(slice.position_U, compute);
//   at::Tensor q = rotate(q_rope_THA, angles);   // or in place: rotated_heads.h
//
// Pair i of dim / 2 turns by the angle position * frequency_i: (a, b) -> (a cos - b sin, b cos + a sin). Where a and b
// lie is the layout: features 2 i and 2 i + 1 (DeepSeek, Llama-4), or i and i + dim / 2 (Llama, Qwen, GLM, gpt-oss).
// Rotated they are returned as [all a, all b] under both layouts. For halves nothing moved; for pairs every dot product
// of two vectors rotated so is that of the interleaved layout, and features that are not rotated, beside them in
// queries and keys alike, add to it as they are.
#pragma once

#include <torch/types.h>

#include "moe/blueprint.h"

namespace moetune {

struct RopeAngles {
  at::Tensor cos_TA;  ///< [T, rope_dim / 2], compute dtype, already times the attention factor
  at::Tensor sin_TA;
  RotarySpec::Layout layout = RotarySpec::Layout::kPairs;  ///< of what they turn
};

class Rope {
 public:
  Rope(const RotarySpec& spec, at::Device device);
  /// Angles of positions (int64 [T]); computed in fp32 as the reference (transformers' modeling_rope_utils) does.
  RopeAngles angles(const at::Tensor& position_T, at::ScalarType compute) const;
  const at::Tensor& inverse_frequencies() const { return inverse_frequency_; }

 private:
  at::Tensor inverse_frequency_;  // fp32 [rope_dim / 2]
  double attention_factor_;
  RotarySpec::Layout layout_;
};

/// x_THA [T, heads, rope_dim] -> rotated, first halves then second halves.
at::Tensor rotate(const at::Tensor& x_THA, const RopeAngles& angles);
/// Its transpose, and inverse but for the attention factor: what rotate() returned -> in the angles' layout.
at::Tensor rotate_back(const at::Tensor& y_THA, const RopeAngles& angles);

}  // namespace moetune
