// The CUDA kernel of stochastic_rounding on raw device pointers and a stream: the bits of the host's.
//
//   round_run_cuda(from, to, count, key, first, stream);
//   // then check cudaGetLastError(): the function only launches
#pragma once

#include <cstdint>

typedef struct CUstream_st* cudaStream_t;

namespace moetune {

/// Numbers whose places agree but for their lowest 32 bits, which begin with `first`; to: bits of bf16.
void round_run_cuda(const float* from, uint16_t* to, int64_t count, uint32_t key, uint32_t first, cudaStream_t stream);

}  // namespace moetune
