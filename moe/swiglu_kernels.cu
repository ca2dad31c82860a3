#include "moe/swiglu_kernels.h"

#include <algorithm>

#include "moe/sigmoid.cuh"
#include "parallel/device/row_vectors.cuh"

namespace moetune {
namespace {

constexpr int kThreads = 256;
constexpr int kInFlight = 2;  // vectors of each operand that a thread has asked for before it uses the first

/// Calls body with the number of each vector of the thread. Vectors of a block lie side by side.
template <typename Body>
__device__ void each_vector(int64_t base, int64_t vectors, const Body& body) {
#pragma unroll
  for (int u = 0; u < kInFlight; ++u) {
    const int64_t place = base + u * kThreads;
    if (place < vectors) body(u, place);
  }
}

template <typename Number, int kVec>
__global__ void __launch_bounds__(kThreads)
    forward_kernel(const Number* __restrict__ gate, const Number* __restrict__ up, int64_t vectors,
                   Number* __restrict__ h) {
  using V = Vector<Number, kVec>;
  const int64_t base = static_cast<int64_t>(blockIdx.x) * kThreads * kInFlight + threadIdx.x;
  V a[kInFlight], b[kInFlight];
  each_vector(base, vectors, [&](int u, int64_t place) {
    a[u] = V::load(gate + place * kVec);
    b[u] = V::load(up + place * kVec);
  });
  each_vector(base, vectors, [&](int u, int64_t place) {
    Wide<Number> x[kVec], y[kVec];
    a[u].unpack(x);
    b[u].unpack(y);
#pragma unroll
    for (int i = 0; i < kVec; ++i) x[i] *= sigmoid(x[i], Number{}) * y[i];
    V::packed(x).store(h + place * kVec);
  });
}

template <typename Number, int kVec>
__global__ void __launch_bounds__(kThreads)
    backward_kernel(const Number* __restrict__ gate, const Number* __restrict__ up, const Number* __restrict__ d_h,
                    int64_t vectors, Number* __restrict__ d_gate, Number* __restrict__ d_up) {
  using V = Vector<Number, kVec>;
  using W = Wide<Number>;
  const int64_t base = static_cast<int64_t>(blockIdx.x) * kThreads * kInFlight + threadIdx.x;
  V a[kInFlight], b[kInFlight], c[kInFlight];
  each_vector(base, vectors, [&](int u, int64_t place) {
    a[u] = V::load(gate + place * kVec);
    b[u] = V::load(up + place * kVec);
    c[u] = V::load(d_h + place * kVec);
  });
  each_vector(base, vectors, [&](int u, int64_t place) {
    W x[kVec], y[kVec], d[kVec];
    a[u].unpack(x);
    b[u].unpack(y);
    c[u].unpack(d);
#pragma unroll
    for (int i = 0; i < kVec; ++i) {
      const W s = sigmoid(x[i], Number{});
      const W to_up = d[i] * x[i] * s;
      x[i] = d[i] * y[i] * s * (W(1) + x[i] * (W(1) - s));
      y[i] = to_up;
    }
    V::packed(x).store(d_gate + place * kVec);
    V::packed(y).store(d_up + place * kVec);
  });
}

unsigned grid_for(int64_t vectors) {
  constexpr int64_t kOfBlock = kThreads * kInFlight;
  return static_cast<unsigned>((vectors + kOfBlock - 1) / kOfBlock);
}

}  // namespace

template <typename Number>
void swiglu_forward_cuda(const Number* gate, const Number* up, int64_t count, Number* h, cudaStream_t stream) {
  if (count == 0) return;
  constexpr int kVec = kVectorOf<Number>;
  if (takes_vectors(gate, 0, count) && takes_vectors(up, 0, count) && takes_vectors(h, 0, count)) {
    forward_kernel<Number, kVec><<<grid_for(count / kVec), kThreads, 0, stream>>>(gate, up, count / kVec, h);
  } else {
    forward_kernel<Number, 1><<<grid_for(count), kThreads, 0, stream>>>(gate, up, count, h);
  }
}

template <typename Number>
void swiglu_backward_cuda(const Number* gate, const Number* up, const Number* d_h, int64_t count, Number* d_gate,
                          Number* d_up, cudaStream_t stream) {
  if (count == 0) return;
  constexpr int kVec = kVectorOf<Number>;
  if (takes_vectors(gate, 0, count) && takes_vectors(up, 0, count) && takes_vectors(d_h, 0, count) &&
      takes_vectors(d_gate, 0, count) && takes_vectors(d_up, 0, count)) {
    backward_kernel<Number, kVec>
        <<<grid_for(count / kVec), kThreads, 0, stream>>>(gate, up, d_h, count / kVec, d_gate, d_up);
  } else {
    backward_kernel<Number, 1><<<grid_for(count), kThreads, 0, stream>>>(gate, up, d_h, count, d_gate, d_up);
  }
}

template void swiglu_forward_cuda(const Bf16Bits*, const Bf16Bits*, int64_t, Bf16Bits*, cudaStream_t);
template void swiglu_forward_cuda(const float*, const float*, int64_t, float*, cudaStream_t);
template void swiglu_forward_cuda(const double*, const double*, int64_t, double*, cudaStream_t);
template void swiglu_backward_cuda(const Bf16Bits*, const Bf16Bits*, const Bf16Bits*, int64_t, Bf16Bits*, Bf16Bits*,
                                   cudaStream_t);
template void swiglu_backward_cuda(const float*, const float*, const float*, int64_t, float*, float*, cudaStream_t);
template void swiglu_backward_cuda(const double*, const double*, const double*, int64_t, double*, double*,
                                   cudaStream_t);

}  // namespace moetune
