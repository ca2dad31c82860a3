#include "trainer/update/stochastic_rounding_kernels.h"

#include <cuda_runtime.h>

#include <algorithm>

#include "trainer/update/stochastic_rounding_bits.h"

namespace moetune {
namespace {

constexpr int kThreads = 256;
constexpr int64_t kMostBlocks = 65535;

__global__ void __launch_bounds__(kThreads)
    round_kernel(const float* from, uint16_t* to, int64_t count, uint32_t key, uint32_t first) {
  const int64_t step = static_cast<int64_t>(gridDim.x) * kThreads;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; i < count; i += step) {
    to[i] = rounded_by_chance(from[i], mixed((first + static_cast<uint32_t>(i)) ^ key));
  }
}

}  // namespace

void round_run_cuda(const float* from, uint16_t* to, int64_t count, uint32_t key, uint32_t first, cudaStream_t stream) {
  if (count == 0) return;
  const auto blocks = static_cast<unsigned>(std::min(kMostBlocks, (count + kThreads - 1) / kThreads));
  round_kernel<<<blocks, kThreads, 0, stream>>>(from, to, count, key, first);
}

}  // namespace moetune
