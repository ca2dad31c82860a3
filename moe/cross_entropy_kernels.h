// The CUDA kernels of cross-entropy (cross_entropy.h) on raw device pointers and a stream; Number is Bf16Bits, float or
// double. Logits [rows, vocab] lie row by row.
//
//   log_sum_exp_cuda(logits, rows, vocab, log_sum, stream);
//   // then check cudaGetLastError(): the functions only launch
//
// A block a row. The sum is taken in one reading, with a maximum that moves as it goes (Milakov, Gimelshein 2018,
// "Online normalizer calculation for softmax"); its order is the same on every run.
#pragma once

#include "parallel/base/raw_numbers.h"

typedef struct CUstream_st* cudaStream_t;

namespace moetune {

/// log_sum[row] = log sum_v exp(logits[row, v]).
template <typename Number>
void log_sum_exp_cuda(const Number* logits, int64_t rows, int64_t vocab, Wide<Number>* log_sum, cudaStream_t stream);

template <typename Number>
struct CrossEntropyGradient {
  Number* logits = nullptr;  ///< read, and overwritten by the gradient
  int64_t rows = 0, vocab = 0;
  const Wide<Number>* log_sum = nullptr;
  const int64_t* target = nullptr;       ///< [rows], the target's column
  const bool* own = nullptr;             ///< [rows], whether it has one here
  const Wide<Number>* weight = nullptr;  ///< [rows]; null: 1
  double scale = 1.0;
};
/// logits[row, v] = scale weight[row] (exp(logits[row, v] - log_sum[row]) - (own[row] and v = target[row])).
template <typename Number>
void cross_entropy_gradient_cuda(const CrossEntropyGradient<Number>& arguments, cudaStream_t stream);

}  // namespace moetune
