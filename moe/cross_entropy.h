// Cross-entropy of rows of logits and its gradient, which takes their place.
//
//   at::Tensor log_sum_C1 = log_sum_exp(logits_CV);
//   loss_C1 = log_sum_C1 - logits_CV.gather(1, target_C1);
//   d_logits_CV = cross_entropy_gradient(std::move(logits_CV), log_sum_C1, {target_C1, own_C1}, scale, weight_C1);
//
// Logits are in compute dtype, what is computed from them in fp32 (fp64 for fp64). On GPUs (cross_entropy_kernels.h)
// they are read once for the sums, and read and overwritten once for the gradient; nothing of their size is made.
#pragma once

#include <torch/types.h>

namespace moetune {

/// log of the sum of exp of each row: [C, V] -> [C, 1], wide.
at::Tensor log_sum_exp(const at::Tensor& logits_CV);

/// Of each row the column of its target, and whether it is among these columns at all (bool).
struct TargetColumns {
  at::Tensor column_C1, own_C1;
};

/// scale * weight * (exp(logits - log_sum) - one hot of the target), in the dtype of the logits, whose memory it may
/// take. weight_C1: wide; undefined: 1. No graph.
at::Tensor cross_entropy_gradient(at::Tensor logits_CV, const at::Tensor& log_sum_C1, const TargetColumns& target,
                                  double scale, const at::Tensor& weight_C1);

}  // namespace moetune
