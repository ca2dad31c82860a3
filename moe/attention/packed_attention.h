// Attention within each document of a slice of packed documents: the one place where queries meet keys.
//
//   at::Tensor out_UHA = packed_attention(q_UHA, k_UGA, v_UGA, slice, spec, sinks_H);
//
// On GPUs in half dtypes ragged_attention() computes it, elsewhere bucketed_attention(); both under every mask.
#pragma once

#include "moe/attention/slice.h"
#include "moe/blueprint.h"
#include "moe/cost.h"
#include "moe/keep.h"

namespace moetune {

/// q_UHA [U, H, qk], k_UGA [U, G, qk], v_UGA [U, G, value] of one dtype, G dividing H -> [U, H, value]; H and G are
/// those of this rank. Of `spec` it reads mask and softmax_scale. sinks_H [H]: this rank's; undefined: none.
/// Differentiable in all four. Any number of rows; with none the graph goes through the values. `kept`: null, or where
/// the result goes for another pass over the same rows, which takes it from there.
at::Tensor packed_attention(const at::Tensor& q_UHA, const at::Tensor& k_UGA, const at::Tensor& v_UGA,
                            const Slice& slice, const AttentionSpec& spec, const at::Tensor& sinks_H = {},
                            KeptAttention* kept = nullptr);

/// Whether heads of this width attend where their rows lie (moe/attention/ragged_attention.h), for plans.
bool attends_ragged(const PassTraits& traits, int64_t width);
/// Else: elements a row of queries, keys, values and output as buckets keep them; `key_heads`: of all ranks together.
int64_t bucketed_elements(const AttentionSpec& spec, int64_t key_heads, const PassTraits& traits);

}  // namespace moetune
