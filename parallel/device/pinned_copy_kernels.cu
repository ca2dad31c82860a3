#include "parallel/device/pinned_copy_kernels.h"

#include <cuda_runtime.h>

#include <algorithm>

namespace moetune {
namespace {

// Enough reads in flight to fill the bus, few enough blocks to leave the multiprocessors to others.
constexpr int kThreads = 256, kMostBlocks = 32;

template <typename Unit>
__global__ void __launch_bounds__(kThreads) copy_kernel(const Unit* from, Unit* to, int64_t count) {
  const int64_t step = static_cast<int64_t>(gridDim.x) * kThreads;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; i < count; i += step) to[i] = from[i];
}

template <typename Unit>
void launch(const void* from, void* to, int64_t count, cudaStream_t stream) {
  if (count == 0) return;
  const auto blocks = static_cast<unsigned>(std::min<int64_t>(kMostBlocks, (count + kThreads - 1) / kThreads));
  copy_kernel<<<blocks, kThreads, 0, stream>>>(static_cast<const Unit*>(from), static_cast<Unit*>(to), count);
}

}  // namespace

void copy_bytes_cuda(const void* from, void* to, int64_t count, cudaStream_t stream) {
  const uintptr_t begins = reinterpret_cast<uintptr_t>(from) | reinterpret_cast<uintptr_t>(to);
  int64_t done = 0;
  const auto copy = [&](auto unit) {
    constexpr int64_t kSize = sizeof(unit);
    if (begins % kSize != 0) return;
    const int64_t units = (count - done) / kSize;
    launch<decltype(unit)>(static_cast<const char*>(from) + done, static_cast<char*>(to) + done, units, stream);
    done += units * kSize;
  };
  copy(uint4{});
  copy(uint64_t{});
  copy(uint32_t{});
  copy(uint16_t{});
  copy(uint8_t{});
}

}  // namespace moetune
