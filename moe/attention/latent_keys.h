// Keys and values of latent attention, from the map of the latent to all heads and the one rotary key.
//
//   const LatentKeys kv = latent_keys(kv_UC, key_UA, heads, nope_dim, angles);
//   packed_attention(q_UHA, kv.k_UHA, kv.v_UHA, slice, spec);
//
// Of each head kv_UC holds the nope features of its key and then its value. A key is these nope features and behind
// them the rotary key, rotated, which all heads share (DeepSeek-V2 report, equations 14 to 16). Values stay where they
// are. Backward, one pass joins the gradients of both and sums those of the rotary key over the heads.
#pragma once

#include <torch/types.h>

#include "moe/attention/rope.h"

namespace moetune {

struct LatentKeys {
  at::Tensor k_UHA;  ///< [U, H, nope + rotary]
  at::Tensor v_UHA;  ///< [U, H, value]: a view of kv_UC
};

/// kv_UC [U, H * (nope + value)], one row after the other; key_UA [U, rotary], rows any distance apart. Differentiable
/// in both.
LatentKeys latent_keys(const at::Tensor& kv_UC, const at::Tensor& key_UA, int64_t heads, int64_t nope_dim,
                       const RopeAngles& angles);

}  // namespace moetune
