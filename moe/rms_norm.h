// RMSNorm (Zhang, Sennrich 2019) as DeepSeek and Llama compute it: statistics in fp32, rounded to the input's dtype,
// then scaled.
//
//   at::Tensor y_TD = rms_norm(x_TD, weight_D, 1e-6);
//
// One autograd node that keeps x and one number a row, instead of the five nodes and three copies of the plain
// expression.
#pragma once

#include <torch/types.h>

namespace moetune {

/// y = weight * round(x / sqrt(mean(x^2) + eps)); differentiable in x and weight. Any leading dims; statistics in fp32
/// (fp64 for fp64).
at::Tensor rms_norm(const at::Tensor& x_TD, const at::Tensor& weight_D, double eps);

}  // namespace moetune
