// The CUDA kernels of SwiGLU (swiglu.h) on raw device pointers and a stream; Number is Bf16Bits, float or double, all
// numbers of an operand lie side by side.
//
//   swiglu_forward_cuda(gate, up, count, h, stream);
//   // then check cudaGetLastError(): the functions only launch
//
// Bound by device memory: each number is read once and written once, 16 bytes at a time where all addresses allow it.
#pragma once

#include <cstdint>

#include "parallel/base/raw_numbers.h"

typedef struct CUstream_st* cudaStream_t;

namespace moetune {

/// h = silu(gate) up.
template <typename Number>
void swiglu_forward_cuda(const Number* gate, const Number* up, int64_t count, Number* h, cudaStream_t stream);

/// With s = 1 / (1 + exp(-gate)):  d_gate = d_h up s (1 + gate (1 - s)),  d_up = d_h gate s.
template <typename Number>
void swiglu_backward_cuda(const Number* gate, const Number* up, const Number* d_h, int64_t count, Number* d_gate,
                          Number* d_up, cudaStream_t stream);

}  // namespace moetune
