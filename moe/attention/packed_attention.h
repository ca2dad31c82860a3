// Attention within each document of a slice of packed documents: the one place where queries meet keys.
//
//   at::Tensor out_UHA = packed_attention(q_UHA, k_UGA, v_UGA, slice, spec, sinks_H);
//
// Documents of similar length become a dense batch (a bucket of the slice), which dense_attention() computes under the
// layer's mask. Padding stands behind a document's last token, where no token of it looks.
#pragma once

#include "moe/attention/slice.h"
#include "moe/blueprint.h"

namespace moetune {

/// q_UHA [U, H, qk], k_UGA [U, G, qk], v_UGA [U, G, value] of one dtype, G dividing H -> [U, H, value]; H and G are
/// those of this rank. Of `spec` it reads mask and softmax_scale. sinks_H [H]: this rank's; undefined: none.
/// Differentiable in all four. Any number of rows; with none the graph goes through the values.
at::Tensor packed_attention(const at::Tensor& q_UHA, const at::Tensor& k_UGA, const at::Tensor& v_UGA,
                            const Slice& slice, const AttentionSpec& spec, const at::Tensor& sinks_H = {});

}  // namespace moetune
