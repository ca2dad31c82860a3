#include "lora/adapters/dropout_kernels.h"

#include <algorithm>

#include "parallel/base/splitmix64.h"
#include "parallel/device/row_vectors.cuh"

namespace moetune {
namespace {

constexpr int kThreads = 256;

/// The 24 bits that counter_uniform() takes.
__device__ float uniform(uint64_t key, uint64_t index) {
  return static_cast<float>(splitmix64_at(key, index) >> 40) * (1.0f / (1 << 24));
}

template <typename Number, int kVec>
__global__ void __launch_bounds__(kThreads) drop_kernel(const __grid_constant__ DropArguments<Number> p) {
  using V = Vector<Number, kVec>;
  using W = Wide<Number>;
  const int64_t column = (static_cast<int64_t>(blockIdx.y) * kThreads + threadIdx.x) * kVec;
  if (column >= p.width) return;
  const auto dropout = static_cast<float>(p.dropout);
  const auto scale = static_cast<W>(p.scale);
  for (int64_t row = blockIdx.x; row < p.rows; row += gridDim.x) {
    const uint64_t first = static_cast<uint64_t>(p.token[row]) * static_cast<uint64_t>(p.inputs) +
                           static_cast<uint64_t>(p.first_input + column);
    W x[kVec];
    V::load(p.x + row * p.x_stride + column).unpack(x);
#pragma unroll
    for (int i = 0; i < kVec; ++i) {
      x[i] = x[i] * (uniform(p.key, first + static_cast<uint64_t>(i)) >= dropout ? W(1) : W(0)) * scale;
    }
    V::packed(x).store(p.y + row * p.width + column);
  }
}

template <typename Number, int kVec>
void launch(const DropArguments<Number>& p, cudaStream_t stream) {
  constexpr int64_t kMostRows = 65535, kColumns = static_cast<int64_t>(kThreads) * kVec;
  const dim3 grid(static_cast<unsigned>(std::min(p.rows, kMostRows)),
                  static_cast<unsigned>((p.width + kColumns - 1) / kColumns));
  drop_kernel<Number, kVec><<<grid, kThreads, 0, stream>>>(p);
}

}  // namespace

template <typename Number>
void drop_cuda(const DropArguments<Number>& p, cudaStream_t stream) {
  if (p.rows == 0 || p.width == 0) return;
  if (takes_vectors(p.x, p.x_stride, p.width) && takes_vectors(p.y, p.width, p.width)) {
    launch<Number, kVectorOf<Number>>(p, stream);
  } else {
    launch<Number, 1>(p, stream);
  }
}

template void drop_cuda(const DropArguments<Bf16Bits>&, cudaStream_t);
template void drop_cuda(const DropArguments<float>&, cudaStream_t);
template void drop_cuda(const DropArguments<double>&, cudaStream_t);

}  // namespace moetune
