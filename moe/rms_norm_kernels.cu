#include "moe/rms_norm_kernels.h"

#include "parallel/device/row_vectors.cuh"

namespace moetune {
namespace {

constexpr int kMostThreads = 512;  // so that a thread may have 128 registers
constexpr int kHeld = 8;           // vectors of a row that a thread holds

/// Threads of a row along x, as few as hold it (a power of two), and rows of a block along y. A row that the most
/// threads cannot hold is read again.
dim3 block_for(int64_t vectors) {
  int64_t threads = 4;
  while (threads < 32 && 2 * threads < vectors) threads *= 2;
  while (threads < kMostThreads && kHeld * threads < vectors) threads *= 2;
  return dim3(static_cast<unsigned>(threads), threads <= 32 ? 128 / static_cast<unsigned>(threads) : 1);
}

unsigned grid_for(int64_t rows, const dim3& block) { return static_cast<unsigned>((rows + block.y - 1) / block.y); }

__device__ float inverse_sqrt(float x) { return __frcp_rn(__fsqrt_rn(x)); }
__device__ double inverse_sqrt(double x) { return 1.0 / sqrt(x); }

/// Calls body(u, place) for the vectors of this thread among kHeld * blockDim.x from `base` on: u counts them, place is
/// theirs in the row. Unrolled, so that an array indexed by u stays in registers.
template <typename Body>
__device__ void each_vector(int base, int vectors, const Body& body) {
#pragma unroll
  for (int u = 0; u < kHeld; ++u) {
    const int place = base + u * static_cast<int>(blockDim.x);
    if (place < vectors) body(u, place);
  }
}

// Threads of a block past the last row stay, with no vectors, for the sum over their warp.
template <typename Number, int kVec, bool kAdds>
__global__ void __launch_bounds__(kMostThreads) forward_kernel(const __grid_constant__ NormForward<Number> p) {
  using V = Vector<Number, kVec>;
  using W = Wide<Number>;
  const int64_t row = static_cast<int64_t>(blockIdx.x) * blockDim.y + threadIdx.y;
  const bool exists = row < p.rows;
  const int vectors = exists ? static_cast<int>(p.width / kVec) : 0;
  const int round = static_cast<int>(blockDim.x) * kHeld;
  const Number* x_row = p.x.first + row * p.x.stride;
  const Number* added_row = p.added.first + row * p.added.stride;
  Number* sum_row = p.sum + row * p.width;
  V x[kHeld];
  W squares = 0;
  for (int base = static_cast<int>(threadIdx.x); base < vectors; base += round) {
    each_vector(base, vectors, [&](int u, int place) { x[u] = V::load(x_row + place * kVec); });
    if constexpr (kAdds) {
      V added[kHeld];
      each_vector(base, vectors, [&](int u, int place) { added[u] = V::load(added_row + place * kVec); });
      each_vector(base, vectors, [&](int u, int place) {
        W a[kVec], b[kVec];
        x[u].unpack(a);
        added[u].unpack(b);
#pragma unroll
        for (int i = 0; i < kVec; ++i) a[i] += b[i];
        x[u] = V::packed(a);
        x[u].store(sum_row + place * kVec);
      });
    }
    each_vector(base, vectors, [&](int u, int) {
      W a[kVec];
      x[u].unpack(a);
#pragma unroll
      for (int i = 0; i < kVec; ++i) squares += a[i] * a[i];
    });
  }
  const W inverse_rms = inverse_sqrt(row_sum(squares) / static_cast<W>(p.width) + static_cast<W>(p.eps));
  if (exists && threadIdx.x == 0) p.inverse_rms[row] = inverse_rms;
  for (int base = static_cast<int>(threadIdx.x); base < vectors; base += round) {
    if (vectors > round) {
      each_vector(base, vectors, [&](int u, int place) { x[u] = V::load((kAdds ? sum_row : x_row) + place * kVec); });
    }
    each_vector(base, vectors, [&](int u, int place) {
      W a[kVec], w[kVec];
      x[u].unpack(a);
      V::load(p.weight + place * kVec).unpack(w);
#pragma unroll
      for (int i = 0; i < kVec; ++i) a[i] = rounded<Number>(a[i] * inverse_rms) * w[i];
      V::packed(a).store(p.y + row * p.width + place * kVec);
    });
  }
}

template <typename Number, int kVec, bool kAdds>
__global__ void __launch_bounds__(kMostThreads) backward_kernel(const __grid_constant__ NormBackward<Number> p) {
  using V = Vector<Number, kVec>;
  using W = Wide<Number>;
  const int64_t row = static_cast<int64_t>(blockIdx.x) * blockDim.y + threadIdx.y;
  const bool exists = row < p.rows;
  const int vectors = exists ? static_cast<int>(p.width / kVec) : 0;
  const int round = static_cast<int>(blockDim.x) * kHeld;
  const Number* x_row = p.x.first + row * p.x.stride;
  const Number* d_y_row = p.d_y.first + row * p.d_y.stride;
  const Number* added_row = p.added.first + row * p.added.stride;
  const W inverse_rms = exists ? p.inverse_rms[row] : W(0);
  V x[kHeld], d_y[kHeld];
  const auto load = [&](int u, int place) {
    x[u] = V::load(x_row + place * kVec);
    d_y[u] = V::load(d_y_row + place * kVec);
  };
  W products = 0;  // sum of g x
  for (int base = static_cast<int>(threadIdx.x); base < vectors; base += round) {
    each_vector(base, vectors, load);
    each_vector(base, vectors, [&](int u, int place) {
      W a[kVec], g[kVec], w[kVec];
      x[u].unpack(a);
      d_y[u].unpack(g);
      V::load(p.weight + place * kVec).unpack(w);
#pragma unroll
      for (int i = 0; i < kVec; ++i) products += g[i] * w[i] * a[i];
    });
  }
  // r (g - n mean(g n)) = r g - x r^3 mean(g x)
  const W of_x = row_sum(products) / static_cast<W>(p.width) * inverse_rms * inverse_rms * inverse_rms;
  for (int base = static_cast<int>(threadIdx.x); base < vectors; base += round) {
    if (vectors > round) each_vector(base, vectors, load);
    each_vector(base, vectors, [&](int u, int place) {
      W a[kVec], g[kVec], w[kVec], b[kVec] = {};
      x[u].unpack(a);
      d_y[u].unpack(g);
      V::load(p.weight + place * kVec).unpack(w);
      if constexpr (kAdds) V::load(added_row + place * kVec).unpack(b);
#pragma unroll
      for (int i = 0; i < kVec; ++i) a[i] = b[i] + (inverse_rms * (g[i] * w[i]) - of_x * a[i]);
      V::packed(a).store(p.d_x + row * p.width + place * kVec);
    });
  }
}

constexpr int kColumnThreads = 128;

template <typename Number, int kVec>
__global__ void __launch_bounds__(kColumnThreads)
    weight_gradient_kernel(const __grid_constant__ NormWeightGradient<Number> p) {
  using V = Vector<Number, kVec>;
  using W = Wide<Number>;
  const int64_t column = (static_cast<int64_t>(blockIdx.x) * kColumnThreads + threadIdx.x) * kVec;
  if (column >= p.width) return;
  const int64_t first = blockIdx.y * p.chunk_rows, end = min(first + p.chunk_rows, p.rows);
  W sum[kVec] = {};
  for (int64_t base = first; base < end; base += kHeld) {
    V x[kHeld], d_y[kHeld];
    W inverse_rms[kHeld];
#pragma unroll
    for (int u = 0; u < kHeld; ++u) {
      const int64_t row = base + u;
      if (row >= end) continue;
      x[u] = V::load(p.x.first + row * p.x.stride + column);
      d_y[u] = V::load(p.d_y.first + row * p.d_y.stride + column);
      inverse_rms[u] = p.inverse_rms[row];
    }
#pragma unroll
    for (int u = 0; u < kHeld; ++u) {
      if (base + u >= end) continue;
      W a[kVec], g[kVec];
      x[u].unpack(a);
      d_y[u].unpack(g);
#pragma unroll
      for (int i = 0; i < kVec; ++i) sum[i] += g[i] * (a[i] * inverse_rms[u]);
    }
  }
#pragma unroll
  for (int i = 0; i < kVec; ++i) p.partial[blockIdx.y * p.width + column + i] = sum[i];
}

template <typename Number>
bool rows_take_vectors(const StridedRows<Number>& rows, int64_t width) {
  return rows.first == nullptr || takes_vectors(rows.first, rows.stride, width);
}

template <typename Number, int kVec>
void launch_forward(const NormForward<Number>& p, cudaStream_t stream) {
  const dim3 block = block_for(p.width / kVec);
  const unsigned grid = grid_for(p.rows, block);
  if (p.added.first != nullptr) forward_kernel<Number, kVec, true><<<grid, block, 0, stream>>>(p);
  else forward_kernel<Number, kVec, false><<<grid, block, 0, stream>>>(p);
}

template <typename Number, int kVec>
void launch_backward(const NormBackward<Number>& p, cudaStream_t stream) {
  const dim3 block = block_for(p.width / kVec);
  const unsigned grid = grid_for(p.rows, block);
  if (p.added.first != nullptr) backward_kernel<Number, kVec, true><<<grid, block, 0, stream>>>(p);
  else backward_kernel<Number, kVec, false><<<grid, block, 0, stream>>>(p);
}

template <typename Number, int kVec>
void launch_weight_gradient(const NormWeightGradient<Number>& p, cudaStream_t stream) {
  constexpr int64_t kColumns = kColumnThreads * kVec;
  const dim3 grid(static_cast<unsigned>((p.width + kColumns - 1) / kColumns),
                  static_cast<unsigned>((p.rows + p.chunk_rows - 1) / p.chunk_rows));
  weight_gradient_kernel<Number, kVec><<<grid, kColumnThreads, 0, stream>>>(p);
}

}  // namespace

template <typename Number>
void rms_norm_forward_cuda(const NormForward<Number>& p, cudaStream_t stream) {
  if (p.rows == 0 || p.width == 0) return;
  const bool vectors = rows_take_vectors(p.x, p.width) && rows_take_vectors(p.added, p.width) &&
                       takes_vectors(p.weight, 0, p.width) && takes_vectors(p.y, p.width, p.width) &&
                       takes_vectors(p.sum, p.width, p.width);
  if (vectors) launch_forward<Number, kVectorOf<Number>>(p, stream);
  else launch_forward<Number, 1>(p, stream);
}

template <typename Number>
void rms_norm_backward_cuda(const NormBackward<Number>& p, cudaStream_t stream) {
  if (p.rows == 0 || p.width == 0) return;
  const bool vectors = rows_take_vectors(p.x, p.width) && rows_take_vectors(p.d_y, p.width) &&
                       rows_take_vectors(p.added, p.width) && takes_vectors(p.weight, 0, p.width) &&
                       takes_vectors(p.d_x, p.width, p.width);
  if (vectors) launch_backward<Number, kVectorOf<Number>>(p, stream);
  else launch_backward<Number, 1>(p, stream);
}

template <typename Number>
void rms_norm_weight_gradient_cuda(const NormWeightGradient<Number>& p, cudaStream_t stream) {
  if (p.rows == 0 || p.width == 0) return;
  const bool vectors = rows_take_vectors(p.x, p.width) && rows_take_vectors(p.d_y, p.width);
  if (vectors) launch_weight_gradient<Number, kVectorOf<Number>>(p, stream);
  else launch_weight_gradient<Number, 1>(p, stream);
}

template void rms_norm_forward_cuda(const NormForward<Bf16Bits>&, cudaStream_t);
template void rms_norm_forward_cuda(const NormForward<float>&, cudaStream_t);
template void rms_norm_forward_cuda(const NormForward<double>&, cudaStream_t);
template void rms_norm_backward_cuda(const NormBackward<Bf16Bits>&, cudaStream_t);
template void rms_norm_backward_cuda(const NormBackward<float>&, cudaStream_t);
template void rms_norm_backward_cuda(const NormBackward<double>&, cudaStream_t);
template void rms_norm_weight_gradient_cuda(const NormWeightGradient<Bf16Bits>&, cudaStream_t);
template void rms_norm_weight_gradient_cuda(const NormWeightGradient<float>&, cudaStream_t);
template void rms_norm_weight_gradient_cuda(const NormWeightGradient<double>&, cudaStream_t);

}  // namespace moetune
