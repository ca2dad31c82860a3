// A linear map whose result is wide: y = x W^T as if both were cast to fp32 first (fp64 for fp64), which is how scores
// of a router are computed.
//
//   at::Tensor logit_TE = wide_linear(x_TD, weight_ED);
//
// On a GPU the tensor cores do it where x is bf16: a product of two bf16 numbers is exact in fp32, so that bf16 in and
// fp32 out differs from an fp32 product in the order of its sums alone. What is fp32 itself, a weight that the
// checkpoint has like that and the gradient of y, enters as a sum of bf16 numbers.
#pragma once

#include <torch/types.h>

#include <vector>

namespace moetune {

/// x_TI W^T in fp32, or fp64 for fp64 x; differentiable in both. weight_OI: of any float dtype.
at::Tensor wide_linear(const at::Tensor& x_TI, const at::Tensor& weight_OI);

/// bf16 tensors whose sum is x (fp32) but for 2^(-8 count) of each number: each the rounded rest of those before, 8
/// bits of it. Three hold all 24 bits of an fp32 number.
std::vector<at::Tensor> bf16_parts(const at::Tensor& x, int64_t count);

}  // namespace moetune
