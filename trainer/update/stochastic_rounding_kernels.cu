#include "trainer/update/stochastic_rounding_kernels.h"

#include <cuda_runtime.h>

#include <algorithm>

namespace moetune {
namespace {

constexpr int kThreads = 256;
constexpr int64_t kMostBlocks = 65535;

/// mixed() of stochastic_rounding.cpp, which only the host may call.
__device__ uint32_t mixed(uint32_t x) {
  x = (x ^ (x >> 16)) * 0x7feb352du;
  x = (x ^ (x >> 15)) * 0x846ca68bu;
  return x ^ (x >> 16);
}

/// rounded() likewise.
__device__ uint16_t rounded(float number, uint32_t draw) {
  const uint32_t bits = __float_as_uint(number);
  const uint32_t finite = (bits + (draw & 0xffffu)) >> 16;
  const uint32_t odd = (bits >> 16) | ((bits & 0xffffu) != 0 ? 0x40u : 0u);
  return static_cast<uint16_t>((bits & 0x7f800000u) == 0x7f800000u ? odd : finite);
}

__global__ void __launch_bounds__(kThreads)
    round_kernel(const float* from, uint16_t* to, int64_t count, uint32_t key, uint32_t first) {
  const int64_t step = static_cast<int64_t>(gridDim.x) * kThreads;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; i < count; i += step) {
    to[i] = rounded(from[i], mixed((first + static_cast<uint32_t>(i)) ^ key));
  }
}

}  // namespace

void round_run_cuda(const float* from, uint16_t* to, int64_t count, uint32_t key, uint32_t first, cudaStream_t stream) {
  if (count == 0) return;
  const auto blocks = static_cast<unsigned>(std::min(kMostBlocks, (count + kThreads - 1) / kThreads));
  round_kernel<<<blocks, kThreads, 0, stream>>>(from, to, count, key, first);
}

}  // namespace moetune
