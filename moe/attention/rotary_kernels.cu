#include "moe/attention/rotary_kernels.h"

#include <algorithm>

#include "parallel/device/row_vectors.cuh"

namespace moetune {
namespace {

constexpr int kThreads = 256;
constexpr int kWarp = 32;
constexpr int kInFlight = 4;  // independent loads of a thread before it uses the first

/// Where pair i lies before the rotation.
struct Places {
  int a, b;
};
__device__ Places places(int i, int half, bool pairs) { return pairs ? Places{2 * i, 2 * i + 1} : Places{i, half + i}; }

template <typename W>
struct Pair {
  W a, b;
};
/// Behind the rotation features i and half + i, before it those of places().
template <typename W>
__device__ Pair<W> turned(Pair<W> x, W cos, W sin, bool back) {
  if (back) sin = -sin;
  return {x.a * cos - x.b * sin, x.b * cos + x.a * sin};
}

/// A warp rotates kInFlight / kPairs heads at a time, kPairs pairs of each in a thread. Hazard: in place, other threads
/// of the warp store where this one loads, so all load before any stores.
template <typename Number, int kPairs>
__global__ void __launch_bounds__(kThreads)
    rotate_heads_kernel(const __grid_constant__ RotaryHeads s, const Number* x, const Number* __restrict__ cos,
                        const Number* __restrict__ sin, Number* to, bool back) {
  using W = Wide<Number>;
  constexpr int kHeads = kPairs < kInFlight ? kInFlight / kPairs : 1;
  const int lane = threadIdx.x % kWarp, half = static_cast<int>(s.half);
  const int64_t warp = (static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x) / kWarp;
  const int64_t num_items = s.rows * s.heads;
  Number a[kHeads][kPairs], b[kHeads][kPairs];
#pragma unroll
  for (int h = 0; h < kHeads; ++h) {
    const int64_t item = warp * kHeads + h;
    const Number* from = x + item * s.width + s.first;
#pragma unroll
    for (int p = 0; p < kPairs; ++p) {
      const int i = lane + p * kWarp;
      if (item >= num_items || i >= half) continue;
      const Places at = places(i, half, s.pairs && !back);
      a[h][p] = from[at.a];
      b[h][p] = from[at.b];
    }
  }
  __syncwarp();
#pragma unroll
  for (int h = 0; h < kHeads; ++h) {
    const int64_t item = warp * kHeads + h;
    if (item >= num_items) break;
    const int64_t row = static_cast<unsigned>(item) / static_cast<unsigned>(s.heads);
    Number* into = to + item * s.width + s.first;
#pragma unroll
    for (int p = 0; p < kPairs; ++p) {
      const int i = lane + p * kWarp;
      if (i >= half) continue;
      const Pair<W> y =
          turned<W>({widen(a[h][p]), widen(b[h][p])}, widen(cos[row * half + i]), widen(sin[row * half + i]), back);
      const Places at = places(i, half, s.pairs && back);
      into[at.a] = rounded_to<Number>(y.a);
      into[at.b] = rounded_to<Number>(y.b);
    }
  }
}

/// The features that are not rotated, kVec at a time; a block a row.
template <typename Number, int kVec>
__global__ void __launch_bounds__(kThreads)
    copy_rest_kernel(const __grid_constant__ RotaryHeads s, const Number* __restrict__ x, Number* __restrict__ to) {
  using V = Vector<Number, kVec>;
  const unsigned before = s.first / kVec, rotary = 2 * s.half / kVec, width = s.width / kVec, rest = width - rotary;
  const unsigned count = static_cast<unsigned>(s.heads) * rest;
  const int64_t row = static_cast<int64_t>(blockIdx.x) * s.heads * s.width;
  for (unsigned base = threadIdx.x; base < count; base += kThreads * kInFlight) {
    V v[kInFlight];
    int64_t place[kInFlight];
#pragma unroll
    for (int u = 0; u < kInFlight; ++u) {
      const unsigned n = base + u * kThreads;
      if (n >= count) continue;
      const unsigned head = n / rest, c = n - head * rest;
      place[u] = row + static_cast<int64_t>(head * width + (c < before ? c : c + rotary)) * kVec;
      v[u] = V::load(x + place[u]);
    }
#pragma unroll
    for (int u = 0; u < kInFlight; ++u) {
      if (base + u * kThreads < count) v[u].store(to + place[u]);
    }
  }
}

/// A block a row: the key is rotated once and copied to every head.
template <typename Number, int kVec>
__global__ void __launch_bounds__(kThreads)
    latent_keys_kernel(const __grid_constant__ LatentHeads s, const Number* __restrict__ kv,
                       const Number* __restrict__ key, const Number* __restrict__ cos, const Number* __restrict__ sin,
                       Number* __restrict__ k) {
  using W = Wide<Number>;
  using V = Vector<Number, kVec>;
  __shared__ alignas(16) Number rotated_key[2 * kMostRotaryPairs];
  const int64_t row = blockIdx.x;
  const int half = static_cast<int>(s.half);
  for (int i = threadIdx.x; i < half; i += kThreads) {
    const Places at = places(i, half, s.pairs);
    const Number* from = key + row * s.key_stride;
    const Pair<W> y = turned<W>({widen(from[at.a]), widen(from[at.b])}, widen(cos[row * half + i]),
                                widen(sin[row * half + i]), false);
    rotated_key[i] = rounded_to<Number>(y.a);
    rotated_key[half + i] = rounded_to<Number>(y.b);
  }
  __syncthreads();
  const unsigned nope = s.nope / kVec, in = (s.nope + s.value) / kVec, out = (s.nope + 2 * s.half) / kVec;
  const unsigned count = static_cast<unsigned>(s.heads) * out;
  kv += row * s.heads * (s.nope + s.value);
  k += row * s.heads * (s.nope + 2 * s.half);
  for (unsigned base = threadIdx.x; base < count; base += kThreads * kInFlight) {
    V v[kInFlight];
#pragma unroll
    for (int u = 0; u < kInFlight; ++u) {
      const unsigned n = base + u * kThreads;
      if (n >= count) continue;
      const unsigned head = n / out, c = n - head * out;
      v[u] = c < nope ? V::load(kv + static_cast<int64_t>(head * in + c) * kVec)
                      : V::load(rotated_key + (c - nope) * kVec);
    }
#pragma unroll
    for (int u = 0; u < kInFlight; ++u) {
      const unsigned n = base + u * kThreads;
      if (n < count) v[u].store(k + static_cast<int64_t>(n) * kVec);
    }
  }
}

/// A block a row. The sum over the heads: each thread adds up kVec features of every so many-th head, and the threads
/// of a feature are added in their order.
template <typename Number, int kVec>
__global__ void __launch_bounds__(kThreads)
    latent_keys_backward_kernel(const __grid_constant__ LatentHeads s, const Number* __restrict__ d_k,
                                const Number* __restrict__ d_v, int64_t v_row_stride, int64_t v_head_stride,
                                const Number* __restrict__ cos, const Number* __restrict__ sin,
                                Number* __restrict__ d_kv, Number* __restrict__ d_key) {
  using W = Wide<Number>;
  using V = Vector<Number, kVec>;
  __shared__ W sums[kThreads * kVec];
  __shared__ W total[2 * kMostRotaryPairs];
  const int64_t row = blockIdx.x;
  const int half = static_cast<int>(s.half);
  const unsigned nope = s.nope / kVec, kv = (s.nope + s.value) / kVec, key = (s.nope + 2 * s.half) / kVec;
  const unsigned heads = static_cast<unsigned>(s.heads), count = heads * kv;
  d_k += row * s.heads * (s.nope + 2 * s.half);
  d_v += row * v_row_stride;
  d_kv += row * s.heads * (s.nope + s.value);

  const unsigned columns = 2 * half / kVec, groups = kThreads / columns;
  const unsigned column = threadIdx.x % columns, group = threadIdx.x / columns;
  W sum[kVec] = {};
  if (group < groups) {
#pragma unroll 4
    for (unsigned head = group; head < heads; head += groups) {
      W x[kVec];
      V::load(d_k + static_cast<int64_t>(head * key + nope + column) * kVec).unpack(x);
#pragma unroll
      for (int i = 0; i < kVec; ++i) sum[i] += x[i];
    }
#pragma unroll
    for (int i = 0; i < kVec; ++i) sums[threadIdx.x * kVec + i] = sum[i];
  }

  for (unsigned base = threadIdx.x; base < count; base += kThreads * kInFlight) {
    V v[kInFlight];
#pragma unroll
    for (int u = 0; u < kInFlight; ++u) {
      const unsigned n = base + u * kThreads;
      if (n >= count) continue;
      const unsigned head = n / kv, c = n - head * kv;
      v[u] = c < nope ? V::load(d_k + static_cast<int64_t>(head * key + c) * kVec)
                      : V::load(d_v + head * v_head_stride + (c - nope) * kVec);
    }
#pragma unroll
    for (int u = 0; u < kInFlight; ++u) {
      const unsigned n = base + u * kThreads;
      if (n < count) v[u].store(d_kv + static_cast<int64_t>(n) * kVec);
    }
  }

  __syncthreads();
  for (unsigned i = threadIdx.x; i < columns * kVec; i += kThreads) {
    W x = 0;
    for (unsigned g = 0; g < groups; ++g) x += sums[g * columns * kVec + i];
    total[i] = x;
  }
  __syncthreads();
  for (int i = threadIdx.x; i < half; i += kThreads) {
    const Pair<W> y =
        turned<W>({total[i], total[half + i]}, widen(cos[row * half + i]), widen(sin[row * half + i]), true);
    const Places at = places(i, half, s.pairs);
    d_key[row * 2 * half + at.a] = rounded_to<Number>(y.a);
    d_key[row * 2 * half + at.b] = rounded_to<Number>(y.b);
  }
}

int64_t ceil_of(int64_t a, int64_t b) { return (a + b - 1) / b; }

template <typename Number, int kPairs>
void launch_rotation(const RotaryHeads& s, const Number* x, const Number* cos, const Number* sin, Number* to, bool back,
                     cudaStream_t stream) {
  constexpr int64_t kHeadsOfBlock = kThreads / kWarp * (kPairs < kInFlight ? kInFlight / kPairs : 1);
  rotate_heads_kernel<Number, kPairs>
      <<<static_cast<unsigned>(ceil_of(s.rows * s.heads, kHeadsOfBlock)), kThreads, 0, stream>>>(s, x, cos, sin, to,
                                                                                                 back);
}

bool all_vectors(int64_t vector, std::initializer_list<int64_t> widths) {
  return std::all_of(widths.begin(), widths.end(), [&](int64_t width) { return width % vector == 0; });
}

template <typename Number>
bool starts_vector(const Number* x) {
  return reinterpret_cast<uintptr_t>(x) % 16 == 0;
}

}  // namespace

template <typename Number>
void rotate_heads_cuda(const RotaryHeads& s, const Number* x, const Number* cos, const Number* sin, Number* to,
                       bool back, cudaStream_t stream) {
  if (s.rows * s.heads == 0) return;
  if (s.half <= kWarp) launch_rotation<Number, 1>(s, x, cos, sin, to, back, stream);
  else if (s.half <= 2 * kWarp) launch_rotation<Number, 2>(s, x, cos, sin, to, back, stream);
  else launch_rotation<Number, 4>(s, x, cos, sin, to, back, stream);
  if (to == x || s.width == 2 * s.half) return;
  constexpr int kVec = kVectorOf<Number>;
  const unsigned blocks = static_cast<unsigned>(s.rows);
  if (all_vectors(kVec, {s.width, s.first, 2 * s.half}) && starts_vector(x) && starts_vector(to)) {
    copy_rest_kernel<Number, kVec><<<blocks, kThreads, 0, stream>>>(s, x, to);
  } else {
    copy_rest_kernel<Number, 1><<<blocks, kThreads, 0, stream>>>(s, x, to);
  }
}

template <typename Number>
void latent_keys_cuda(const LatentHeads& s, const Number* kv, const Number* key, const Number* cos, const Number* sin,
                      Number* k, cudaStream_t stream) {
  if (s.rows * s.heads == 0) return;
  constexpr int kVec = kVectorOf<Number>;
  const unsigned blocks = static_cast<unsigned>(s.rows);
  if (all_vectors(kVec, {s.nope, s.value, 2 * s.half}) && starts_vector(kv) && starts_vector(k)) {
    latent_keys_kernel<Number, kVec><<<blocks, kThreads, 0, stream>>>(s, kv, key, cos, sin, k);
  } else {
    latent_keys_kernel<Number, 1><<<blocks, kThreads, 0, stream>>>(s, kv, key, cos, sin, k);
  }
}

template <typename Number>
void latent_keys_backward_cuda(const LatentHeads& s, const Number* d_k, const Number* d_v, int64_t v_row_stride,
                               int64_t v_head_stride, const Number* cos, const Number* sin, Number* d_kv, Number* d_key,
                               cudaStream_t stream) {
  if (s.rows * s.heads == 0) return;
  constexpr int kVec = kVectorOf<Number>;
  const unsigned blocks = static_cast<unsigned>(s.rows);
  if (all_vectors(kVec, {s.nope, s.value, 2 * s.half, v_row_stride, v_head_stride}) && starts_vector(d_k) &&
      starts_vector(d_v) && starts_vector(d_kv)) {
    latent_keys_backward_kernel<Number, kVec>
        <<<blocks, kThreads, 0, stream>>>(s, d_k, d_v, v_row_stride, v_head_stride, cos, sin, d_kv, d_key);
  } else {
    latent_keys_backward_kernel<Number, 1>
        <<<blocks, kThreads, 0, stream>>>(s, d_k, d_v, v_row_stride, v_head_stride, cos, sin, d_kv, d_key);
  }
}

#define MOETUNE_INSTANTIATE(Number)                                                                               \
  template void rotate_heads_cuda(const RotaryHeads&, const Number*, const Number*, const Number*, Number*, bool, \
                                  cudaStream_t);                                                                  \
  template void latent_keys_cuda(const LatentHeads&, const Number*, const Number*, const Number*, const Number*,  \
                                 Number*, cudaStream_t);                                                          \
  template void latent_keys_backward_cuda(const LatentHeads&, const Number*, const Number*, int64_t, int64_t,     \
                                          const Number*, const Number*, Number*, Number*, cudaStream_t);
MOETUNE_INSTANTIATE(Bf16Bits)
MOETUNE_INSTANTIATE(float)
MOETUNE_INSTANTIATE(double)
#undef MOETUNE_INSTANTIATE

}  // namespace moetune
