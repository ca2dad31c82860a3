// The SwiGLU activation (Shazeer 2020), silu(gate) * up with silu(x) = x / (1 + exp(-x)).
//
//   at::Tensor h_UF = swiglu(gate_UF, up_UF);
//
// One autograd node that keeps gate and up alone: what lies between is computed again. On GPUs forward and backward are
// one kernel each (swiglu_kernels.h), in fp32 (fp64 for fp64) until the result is rounded.
#pragma once

#include <torch/types.h>

namespace moetune {

/// Differentiable in both, which have one shape and dtype.
at::Tensor swiglu(const at::Tensor& gate, const at::Tensor& up);

}  // namespace moetune
