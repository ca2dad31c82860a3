// Grouped-query attention (Ainslie et al. 2023) over packed documents: H query heads, G key and value heads, each read
// by H / G queries.
//
//   GroupedQueryAttention attention(spec, std::move(weights), axis);
//   at::Tensor y_TD = attention.forward(x_TD, slice, angles, random, nullptr, Wanted::kNumbers);
//
//   q, k, v = x W_q^T + b_q, x W_k^T + b_k, x W_v^T + b_v;   q, k normed, rotated, scaled as the spec says;
//   y = packed_attention(q, k, v, sinks) W_o^T + b_o
//
// The order is that of transformers: norms with a weight before the rotation, Llama-4's weightless norm behind it. The
// first rotary_dim features of a head are rotated (GLM rotates half of them), the others stand behind them. In a layer
// without positions nothing is rotated, and queries are multiplied by 1 + scale ln(1 + floor((position + 1) / floor))
// where the spec has a temperature (Llama-4; Nakanishi 2025), position counting within the document.
//
// On a tensor axis each rank has H / size query heads and G / size key heads, or, where the axis is a multiple of G,
// the one that its query heads read, as the next size / G - 1 ranks have it too: rows of x are gathered, the rank's
// heads computed for all of them, and what they add to the residual stream is summed where the rows belong.
#pragma once

#include <memory>

#include "moe/attention/attention.h"
#include "moe/blueprint.h"
#include "moe/cost.h"
#include "parallel/comm/tensor_axis.h"

namespace moetune {

/// The maps and norms of one layer's attention. H, G: heads of this rank; D, A, value: widths of model, key and value.
struct GroupedQueryWeights {
  std::unique_ptr<Linear> q;  ///< [H*A, D]
  std::unique_ptr<Linear> k;  ///< [G*A, D]
  std::unique_ptr<Linear> v;  ///< [G*value, D]
  std::unique_ptr<Linear> o;  ///< [D, H*value]; its bias at index 0 of the axis alone (lora/linear.h)
  /// [A] of norms per head, [H*A] and [G*A] of norms over all heads, else undefined; k_norm has all key heads of the
  /// model where several ranks have the same one
  at::Tensor q_norm, k_norm;
  at::Tensor sinks;  ///< [H], or undefined
};

class GroupedQueryAttention final : public Attention {
 public:
  /// The axis must divide heads, and divide kv_heads or be a multiple of them.
  GroupedQueryAttention(const AttentionSpec& spec, GroupedQueryWeights weights, const TensorAxis& axis);

  at::Tensor forward(const at::Tensor& x_TD, const Slice& slice, const RopeAngles& angles, const StepRandom& random,
                     KeptAttention* kept, Wanted wanted) const override;
  std::vector<Linear*> linears() const override;

 private:
  /// Norms of queries [U, H*A] and keys [U, G*A] before the rotation; collective where they span the axis.
  void norm_heads(at::Tensor& q_UC, at::Tensor& k_UC) const;
  /// Rotates the first features of each head, in place, and applies the norm that comes behind -> [U, heads, A].
  at::Tensor with_position(at::Tensor x_UC, int64_t heads, const RopeAngles& angles) const;

  AttentionSpec spec_;
  GroupedQueryWeights weights_;
  TensorAxis axis_;
  int64_t heads_, kv_heads_;  // of this rank
  int64_t copies_;            // ranks that have the same key heads
};

/// Of a row through forward() and its backward pass; `width`: D.
PartCost grouped_query_attention_cost(const AttentionSpec& spec, const DenseMaps& maps, int64_t width,
                                      const PassTraits& traits);

}  // namespace moetune
