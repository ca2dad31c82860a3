// The CUDA kernels of gated_activation on raw device pointers and a stream.
//
//   gated_activation_cuda(form, rows, gate_up, weight, hidden, stream);
//   gated_activation_backward_cuda(form, rows, gate_up, weight, d_hidden, out, stream);
//   // then check cudaGetLastError(): the functions only launch
//
// Both are bound by device memory: a warp has a row, a lane several 16-byte accesses in flight. Where a pointer or a
// stride is no multiple of 16 bytes, or the features are none of what 16 bytes hold, numbers go one by one.
#pragma once

#include <cstdint>

#include "parallel/base/raw_numbers.h"

typedef struct CUstream_st* cudaStream_t;

namespace moetune {

struct GatedForm {
  bool clamped = false;      ///< (u + 1) g sigmoid(alpha g) of clamped g and u; false: silu(g) u
  bool alternating = false;  ///< gate and up of a feature are neighbours; false: all gates, then all ups
  double limit = 0.0, alpha = 0.0;
};

/// How many rows of how many features there are, and from one row to the next of each matrix, in numbers.
struct GatedRows {
  int64_t rows = 0, features = 0;
  int64_t gate_up_stride = 0, hidden_stride = 0;
  int64_t d_hidden_stride = 0, d_gate_up_stride = 0;  ///< of the backward pass
};

/// hidden = weight[row] * activation(gate, up); weight null: 1.
template <typename T>
void gated_activation_cuda(const GatedForm& form, const GatedRows& rows, const T* gate_up, const T* weight, T* hidden,
                           cudaStream_t stream);

/// What the backward pass writes; null: not wanted.
template <typename T>
struct GatedGradients {
  T* d_gate_up = nullptr;  ///< may be gate_up
  T* d_weight = nullptr;   ///< [rows]; only with a weight
  T* hidden = nullptr;     ///< as gated_activation_cuda writes it; may be d_hidden
};

template <typename T>
void gated_activation_backward_cuda(const GatedForm& form, const GatedRows& rows, const T* gate_up, const T* weight,
                                    const T* d_hidden, const GatedGradients<T>& out, cudaStream_t stream);

}  // namespace moetune
