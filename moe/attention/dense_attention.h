// Attention of a batch of equally long documents: softmax over the keys that the mask shows, and the kernel for it.
//
//   at::Tensor out_BLHA = dense_attention(q_BLHA, k_BLGA, v_BLGA, spec.mask, spec.softmax_scale, sinks_H);
//
// With s_ij = scale q_i . k_j and j over the keys that query i sees:
//
//   y_i = sum_j p_ij v_j,   p_ij = exp(s_ij - l_i),   l_i = ln(sum_j exp(s_ij) + exp(sink))
//
// A sink (gpt-oss; Xiao et al. 2023 for the idea) is one more logit of the head that has no value: it takes part in the
// softmax and is dropped. Query head h reads key and value head h / (H / G) (Ainslie et al. 2023).
#pragma once

#include <torch/types.h>

#include "moe/blueprint.h"

namespace moetune {

/// q_BLHA [B, L, H, qk], k_BLGA [B, L, G, qk], v_BLGA [B, L, G, value] of one dtype, G dividing H -> [B, L, H, value];
/// sinks_H [H] of any float dtype, undefined: none. Differentiable once in all four. Row t of a document is its
/// position: a chunk is the rows of one t / size. For CPUs, and for fp32 and fp64 on GPUs. No memory grows with L^2,
/// but for plain causal attention in dtypes or widths for which LibTorch has no fused kernel.
at::Tensor dense_attention(const at::Tensor& q_BLHA, const at::Tensor& k_BLGA, const at::Tensor& v_BLGA,
                           const MaskSpec& mask, double softmax_scale, const at::Tensor& sinks_H = {});

}  // namespace moetune
