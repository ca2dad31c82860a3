// The CUDA kernels of row_gather on raw device pointers and a stream.
//
//   gather_rows_cuda(from, from_stride, row, num_rows, columns, to, to_stride, stream);
//   gather_sum_cuda(rows, stride, place, places, first, count, sums, columns, sum, stream);
//   // then check cudaGetLastError(): the functions only launch
//
// Both are bound by device memory: a block has a row, a thread four 16-byte accesses in flight. Where a pointer or a
// stride is no multiple of 16 bytes, or the columns are none of what 16 bytes hold, numbers go one by one.
#pragma once

#include <cstdint>

#include "parallel/base/raw_numbers.h"

typedef struct CUstream_st* cudaStream_t;

namespace moetune {

/// to[x] = from[row[x]] for num_rows rows of `columns` numbers. Strides in numbers.
template <typename T>
void gather_rows_cuda(const T* from, int64_t from_stride, const int64_t* row, int64_t num_rows, int64_t columns, T* to,
                      int64_t to_stride, cudaStream_t stream);

/// sum[y] += the sum over k < places of rows[place[y * places + k] - first] for those places that lie in
/// first .. first + count - 1, in the order of k, in fp32 (fp64 for fp64), rounded once. A sum without any is neither
/// read nor written.
template <typename T>
void gather_sum_cuda(const T* rows, int64_t stride, const int32_t* place, int64_t places, int64_t first, int64_t count,
                     int64_t num_sums, int64_t columns, T* sum, cudaStream_t stream);

}  // namespace moetune
