#include "moe/row_gather_kernels.h"

#include <cuda_runtime.h>

#include <algorithm>

#include "moe/lanes.cuh"

namespace moetune {
namespace {

constexpr int kMostThreads = 256;
// Accesses of a thread before it uses the first. A sum holds what it adds up in registers: fewer of them, more blocks.
constexpr int kCopyInFlight = 4, kSumInFlight = 2;

// A warp at the least: the kernels' first warp works as a whole.
int threads_for(int64_t vectors, int in_flight) {
  const int64_t most = kMostThreads * in_flight, steps = std::max<int64_t>(1, (vectors + most - 1) / most);
  const int64_t threads = (vectors + steps * in_flight - 1) / (steps * in_flight);
  return static_cast<int>(std::clamp<int64_t>((threads + 31) / 32 * 32, 32, kMostThreads));
}

template <typename T, int kCount>
__global__ void __launch_bounds__(kMostThreads)
    gather_rows_kernel(const T* __restrict__ from, int64_t from_stride, const int64_t* __restrict__ row,
                       int64_t vectors, T* __restrict__ to, int64_t to_stride) {
  from += row[blockIdx.x] * from_stride;
  to += static_cast<int64_t>(blockIdx.x) * to_stride;
  for (int64_t base = threadIdx.x; base < vectors; base += blockDim.x * kCopyInFlight) {
    Lanes<T, kCount> in[kCopyInFlight];
#pragma unroll
    for (int u = 0; u < kCopyInFlight; ++u) {
      const int64_t v = base + u * blockDim.x;
      if (v < vectors) in[u] = Lanes<T, kCount>::at(from + v * kCount);
    }
#pragma unroll
    for (int u = 0; u < kCopyInFlight; ++u) {
      const int64_t v = base + u * blockDim.x;
      if (v < vectors) in[u].to(to + v * kCount);
    }
  }
}

template <typename T, int kCount>
__global__ void __launch_bounds__(kMostThreads, 3)
    gather_sum_kernel(const T* __restrict__ rows, int64_t stride, const int32_t* __restrict__ place, int places,
                      int64_t first, int64_t count, int64_t vectors, T* __restrict__ sum) {
  extern __shared__ int32_t found[];  // rows of this sum, in the order of k
  __shared__ int num_found;
  if (threadIdx.x < 32) {
    place += static_cast<int64_t>(blockIdx.x) * places;
    const int lane = static_cast<int>(threadIdx.x);
    int before = 0;
    for (int base = 0; base < places; base += 32) {
      const int64_t own = base + lane < places ? place[base + lane] - first : -1;
      const bool inside = own >= 0 && own < count;
      const unsigned all = __ballot_sync(0xffffffffu, inside);
      if (inside) found[before + __popc(all & ((1u << lane) - 1))] = static_cast<int32_t>(own);
      before += __popc(all);
    }
    if (lane == 0) num_found = before;
  }
  __syncthreads();
  if (num_found == 0) return;

  sum += static_cast<int64_t>(blockIdx.x) * vectors * kCount;
  for (int64_t base = threadIdx.x; base < vectors; base += blockDim.x * kSumInFlight) {
    Lanes<T, kCount> old[kSumInFlight], in[kSumInFlight];
    Wide<T> total[kSumInFlight][kCount];
    const T* from = rows + found[0] * stride;
#pragma unroll
    for (int u = 0; u < kSumInFlight; ++u) {
      const int64_t v = base + u * blockDim.x;
      if (v < vectors) {
        old[u] = Lanes<T, kCount>::at(sum + v * kCount);
        in[u] = Lanes<T, kCount>::at(from + v * kCount);
      }
    }
#pragma unroll
    for (int u = 0; u < kSumInFlight; ++u) {
      const int64_t v = base + u * blockDim.x;
      if (v < vectors) {
#pragma unroll
        for (int i = 0; i < kCount; ++i) total[u][i] = old[u].number(i) + in[u].number(i);
      }
    }
    for (int next = 1; next < num_found; ++next) {
      from = rows + found[next] * stride;
#pragma unroll
      for (int u = 0; u < kSumInFlight; ++u) {
        const int64_t v = base + u * blockDim.x;
        if (v < vectors) in[u] = Lanes<T, kCount>::at(from + v * kCount);
      }
#pragma unroll
      for (int u = 0; u < kSumInFlight; ++u) {
        const int64_t v = base + u * blockDim.x;
        if (v < vectors) {
#pragma unroll
          for (int i = 0; i < kCount; ++i) total[u][i] += in[u].number(i);
        }
      }
    }
#pragma unroll
    for (int u = 0; u < kSumInFlight; ++u) {
      const int64_t v = base + u * blockDim.x;
      if (v < vectors) {
#pragma unroll
        for (int i = 0; i < kCount; ++i) old[u].set(i, total[u][i]);
        old[u].to(sum + v * kCount);
      }
    }
  }
}

}  // namespace

template <typename T>
void gather_rows_cuda(const T* from, int64_t from_stride, const int64_t* row, int64_t num_rows, int64_t columns, T* to,
                      int64_t to_stride, cudaStream_t stream) {
  if (num_rows == 0 || columns == 0) return;
  const auto blocks = static_cast<unsigned>(num_rows);
  if (takes_vectors(from, from_stride, columns) && takes_vectors(to, to_stride, columns)) {
    const int64_t vectors = columns / kVectorOf<T>;
    gather_rows_kernel<T, kVectorOf<T>>
        <<<blocks, threads_for(vectors, kCopyInFlight), 0, stream>>>(from, from_stride, row, vectors, to, to_stride);
  } else {
    gather_rows_kernel<T, 1>
        <<<blocks, threads_for(columns, kCopyInFlight), 0, stream>>>(from, from_stride, row, columns, to, to_stride);
  }
}

template <typename T>
void gather_sum_cuda(const T* rows, int64_t stride, const int32_t* place, int64_t places, int64_t first, int64_t count,
                     int64_t num_sums, int64_t columns, T* sum, cudaStream_t stream) {
  if (num_sums == 0 || columns == 0 || count == 0 || places == 0) return;
  const auto blocks = static_cast<unsigned>(num_sums);
  const auto wide = static_cast<int>(places);
  const size_t shared = places * sizeof(int32_t);
  if (takes_vectors(rows, stride, columns) && takes_vectors(sum, columns, columns)) {
    const int64_t vectors = columns / kVectorOf<T>;
    gather_sum_kernel<T, kVectorOf<T>><<<blocks, threads_for(vectors, kSumInFlight), shared, stream>>>(
        rows, stride, place, wide, first, count, vectors, sum);
  } else {
    gather_sum_kernel<T, 1><<<blocks, threads_for(columns, kSumInFlight), shared, stream>>>(rows, stride, place, wide,
                                                                                            first, count, columns, sum);
  }
}

#define MOETUNE_ROW_GATHER(T)                                                                                       \
  template void gather_rows_cuda(const T*, int64_t, const int64_t*, int64_t, int64_t, T*, int64_t, cudaStream_t);   \
  template void gather_sum_cuda(const T*, int64_t, const int32_t*, int64_t, int64_t, int64_t, int64_t, int64_t, T*, \
                                cudaStream_t);
MOETUNE_ROW_GATHER(Bf16Bits)
MOETUNE_ROW_GATHER(float)
MOETUNE_ROW_GATHER(double)
#undef MOETUNE_ROW_GATHER

}  // namespace moetune
