// RMSNorm (Zhang, Sennrich 2019) as DeepSeek and Llama compute it: statistics in fp32, rounded to the input's dtype,
// then scaled.
//
//   at::Tensor y_TD = rms_norm(x_TD, weight_D, 1e-6);
//   auto [sum_TD, normed_TD] = add_rms_norm(x_TD, attended_TD, weight_D, 1e-6);
//
// One autograd node that keeps its input and one number a row. On GPUs forward and backward are one pass over the rows
// each (rms_norm_kernels.h); the gradient of a weight that trains takes another.
#pragma once

#include <torch/types.h>

namespace moetune {

/// y = weight * round(x / sqrt(mean(x^2) + eps)); differentiable in x and weight. Any leading dims, any distance
/// between rows; statistics in fp32 (fp64 for fp64).
at::Tensor rms_norm(const at::Tensor& x_TD, const at::Tensor& weight_D, double eps);

/// A residual stream and its norm.
struct NormedSum {
  at::Tensor sum, normed;
};
/// sum = x + added and rms_norm(sum), differentiable in x, added and weight; what is kept is the sum. The gradient that
/// reaches the sum by other ways joins that of the norm in the same pass. x and added have one shape. `known_sum`: the
/// sum's numbers, where they were kept: those of x and added are not read then.
NormedSum add_rms_norm(const at::Tensor& x_TD, const at::Tensor& added_TD, const at::Tensor& weight_D, double eps,
                       const at::Tensor& known_sum_TD = {});

}  // namespace moetune
