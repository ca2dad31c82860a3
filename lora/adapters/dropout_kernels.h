// The CUDA kernel of an adapter's dropout (adapter.h) on raw device pointers and a stream. Results are bit-equal to the
// plain operations of counter_random.h, which take a dozen passes over 64-bit integers.
//
//   drop_cuda(arguments, stream);
//   // then check cudaGetLastError(): the function only launches
#pragma once

#include <cstdint>

#include "parallel/base/raw_numbers.h"

typedef struct CUstream_st* cudaStream_t;

namespace moetune {

/// y[t, i] = x[t, i] scale where number token[t] inputs + first_input + i of the stream `key` is at least `dropout`,
/// else 0. Number is Bf16Bits, float or double.
template <typename Number>
struct DropArguments {
  const Number* x = nullptr;
  int64_t x_stride = 0;            ///< numbers between the beginnings of rows
  const int64_t* token = nullptr;  ///< [rows]
  int64_t rows = 0, width = 0;
  int64_t inputs = 0, first_input = 0;
  uint64_t key = 0;
  double dropout = 0.0, scale = 1.0;
  Number* y = nullptr;  ///< [rows, width], row by row
};
template <typename Number>
void drop_cuda(const DropArguments<Number>& arguments, cudaStream_t stream);

}  // namespace moetune
