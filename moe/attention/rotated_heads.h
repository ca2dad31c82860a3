// Rotary features turned where they lie, in rows of packed heads: queries, and keys of grouped-query attention.
//
//   at::Tensor q_UC = weights.q->forward(x_UD, token_U, random);        // [U, H * width]
//   q_UC = rotated_heads(std::move(q_UC), heads, /*first=*/nope, angles);
//
// Hazard: it writes into what it is given, which must be nobody else's: the fresh output of a map or a norm that does
// not keep it for its own backward pass. Autograd refuses what another node keeps.
#pragma once

#include <torch/types.h>

#include "moe/attention/rope.h"

namespace moetune {

/// x_UC [U, heads * width] or [U, heads, width], one row after the other; of each head the features first .. first +
/// 2 * angles.cos_TA.size(1) - 1 are rotated as rotate() does. Returns x_UC itself. Differentiable in it.
at::Tensor rotated_heads(at::Tensor x_UC, int64_t heads, int64_t first, const RopeAngles& angles);

}  // namespace moetune
