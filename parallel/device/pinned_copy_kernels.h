// The CUDA kernel of pinned_copy on raw pointers and a stream.
//
//   copy_bytes_cuda(from, to, count, stream);
//   // then check cudaGetLastError(): the function only launches
#pragma once

#include <cstdint>

typedef struct CUstream_st* cudaStream_t;

namespace moetune {

/// `count` bytes from memory that the device may read (its own, or pinned host memory) to the device's, in the widest
/// units, up to 16 bytes, at whose multiples both begin.
void copy_bytes_cuda(const void* from, void* to, int64_t count, cudaStream_t stream);

}  // namespace moetune
