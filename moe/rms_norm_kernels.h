// The CUDA kernels of RMSNorm (rms_norm.h) on raw device pointers and a stream; Number is Bf16Bits, float or double.
//
//   rms_norm_forward_cuda(arguments, stream);
//   // then check cudaGetLastError(): the functions only launch
//
// Bound by device memory: a row is read once, held in registers while its statistics are summed, and written once.
// Rows may lie `stride` numbers apart (columns of a wider matrix); where widths, strides or addresses are not multiples
// of 16 bytes, numbers move one by one. What is written is contiguous.
#pragma once

#include "parallel/base/raw_numbers.h"

typedef struct CUstream_st* cudaStream_t;

namespace moetune {

template <typename Number>
struct StridedRows {
  const Number* first = nullptr;  ///< null: there are none
  int64_t stride = 0;             ///< numbers between the beginnings of rows
};

/// sum = round(x + added);  y = round(round(sum * r) * weight),  r = 1 / sqrt(mean(sum^2) + eps).
template <typename Number>
struct NormForward {
  int64_t rows = 0, width = 0;
  StridedRows<Number> x, added;  ///< nothing added: sum is x, and is not written
  const Number* weight = nullptr;
  double eps = 0.0;
  Number* sum = nullptr;
  Number* y = nullptr;
  Wide<Number>* inverse_rms = nullptr;  ///< [rows]
};
template <typename Number>
void rms_norm_forward_cuda(const NormForward<Number>& arguments, cudaStream_t stream);

/// d_x = round(added + r (g - n mean(g n))),  n = x r,  g = d_y weight.
template <typename Number>
struct NormBackward {
  int64_t rows = 0, width = 0;
  StridedRows<Number> x, d_y, added;
  const Number* weight = nullptr;
  const Wide<Number>* inverse_rms = nullptr;
  Number* d_x = nullptr;
};
template <typename Number>
void rms_norm_backward_cuda(const NormBackward<Number>& arguments, cudaStream_t stream);

/// partial[c] = sum of d_y n over the rows c * chunk_rows .. (c + 1) * chunk_rows - 1: what d weight is the sum of, the
/// same on every run.
template <typename Number>
struct NormWeightGradient {
  int64_t rows = 0, width = 0;
  StridedRows<Number> x, d_y;
  const Wide<Number>* inverse_rms = nullptr;
  int64_t chunk_rows = 1;
  Wide<Number>* partial = nullptr;  ///< [ceil(rows / chunk_rows), width], at most 65535 chunks
};
template <typename Number>
void rms_norm_weight_gradient_cuda(const NormWeightGradient<Number>& arguments, cudaStream_t stream);

}  // namespace moetune
