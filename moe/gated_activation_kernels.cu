#include "moe/gated_activation_kernels.h"

#include <cuda_runtime.h>

#include <type_traits>

#include "moe/lanes.cuh"
#include "moe/sigmoid.cuh"

namespace moetune {
namespace {

constexpr int kWarps = 4;
constexpr int kThreads = 32 * kWarps;

/// Of one feature: what gate becomes, h = glu * scaled, and their derivatives by gate and by up.
template <typename A>
struct Feature {
  A glu, linear;      // silu(g), u; g sigmoid(alpha g), u + 1
  A d_glu, d_linear;  // d glu / d gate, d linear / d up
};

// Comparisons that are false for NaN leave it a NaN, which fminf would hide.
template <typename T, bool kClamped, typename A>
__device__ Feature<A> feature_of(A gate, A up, A limit, A alpha) {
  if constexpr (!kClamped) {
    const A s = sigmoid(gate, T{});
    const A glu = gate * s;
    return {glu, up, s + glu * (A(1) - s), A(1)};
  } else {
    const A g = gate > limit ? limit : gate;
    const A u = up > limit ? limit : up < -limit ? -limit : up;
    const A s = sigmoid(alpha * g, T{});
    const A glu = g * s;
    return {glu, u + A(1), gate > limit ? A(0) : s + alpha * glu * (A(1) - s), up > limit || up < -limit ? A(0) : A(1)};
  }
}

/// Gates and ups of kCount features, as they lie.
template <typename T, int kCount, bool kAlternating>
struct Pairs {
  Lanes<T, kCount> first, second;

  /// From the row's first number; c: the first of the features.
  __device__ static Pairs at(const T* row, int64_t c, int64_t features) {
    const T* from = row + (kAlternating ? 2 * c : c);
    return {Lanes<T, kCount>::at(from), Lanes<T, kCount>::at(from + (kAlternating ? kCount : features))};
  }
  __device__ void to(T* row, int64_t c, int64_t features) const {
    T* where = row + (kAlternating ? 2 * c : c);
    first.to(where);
    second.to(where + (kAlternating ? kCount : features));
  }
  __device__ Wide<T> number(int i) const { return i < kCount ? first.number(i) : second.number(i - kCount); }
  __device__ void set(int i, Wide<T> x) {
    if (i < kCount) first.set(i, x);
    else second.set(i - kCount, x);
  }
  __device__ static constexpr int gate(int i) { return kAlternating ? 2 * i : i; }
  __device__ static constexpr int up(int i) { return kAlternating ? 2 * i + 1 : kCount + i; }
};

template <typename T, int kCount, bool kClamped, bool kAlternating>
__global__ void __launch_bounds__(kThreads)
    activation_kernel(const __grid_constant__ GatedRows rows, Wide<T> limit, Wide<T> alpha,
                      const T* __restrict__ gate_up, const T* __restrict__ weight, T* __restrict__ hidden) {
  using A = Wide<T>;
  using In = Pairs<T, kCount, kAlternating>;
  constexpr int kInFlight = 4;
  const int64_t row = static_cast<int64_t>(blockIdx.x) * kWarps + threadIdx.x / 32;
  if (row >= rows.rows) return;
  gate_up += row * rows.gate_up_stride;
  hidden += row * rows.hidden_stride;
  const A w = weight != nullptr ? widen(weight[row]) : A(1);
  for (int64_t base = threadIdx.x % 32 * kCount; base < rows.features; base += 32 * kCount * kInFlight) {
    In in[kInFlight];
#pragma unroll
    for (int n = 0; n < kInFlight; ++n) {
      const int64_t c = base + n * 32 * kCount;
      if (c < rows.features) in[n] = In::at(gate_up, c, rows.features);
    }
#pragma unroll
    for (int n = 0; n < kInFlight; ++n) {
      const int64_t c = base + n * 32 * kCount;
      if (c < rows.features) {
        Lanes<T, kCount> out;
#pragma unroll
        for (int i = 0; i < kCount; ++i) {
          const Feature<A> f =
              feature_of<T, kClamped, A>(in[n].number(In::gate(i)), in[n].number(In::up(i)), limit, alpha);
          out.set(i, w * (f.glu * f.linear));
        }
        out.to(hidden + c);
      }
    }
  }
}

// d_gate_up may be gate_up and hidden d_hidden: a lane reads what it overwrites before, and nobody else reads it.
template <typename T, int kCount, bool kClamped, bool kAlternating>
__global__ void __launch_bounds__(kThreads)
    backward_kernel(const __grid_constant__ GatedRows rows, Wide<T> limit, Wide<T> alpha, const T* gate_up,
                    const T* __restrict__ weight, const T* d_hidden, const __grid_constant__ GatedGradients<T> out) {
  using A = Wide<T>;
  using In = Pairs<T, kCount, kAlternating>;
  constexpr int kInFlight = 2;
  const int64_t row = static_cast<int64_t>(blockIdx.x) * kWarps + threadIdx.x / 32;
  if (row >= rows.rows) return;
  gate_up += row * rows.gate_up_stride;
  d_hidden += row * rows.d_hidden_stride;
  T* d_gate_up = out.d_gate_up + row * rows.d_gate_up_stride;
  T* hidden = out.hidden != nullptr ? out.hidden + row * rows.hidden_stride : nullptr;
  const A w = weight != nullptr ? widen(weight[row]) : A(1);
  A product = 0;  // <d hidden, activation> of this lane's features
  for (int64_t base = threadIdx.x % 32 * kCount; base < rows.features; base += 32 * kCount * kInFlight) {
    In in[kInFlight];
    Lanes<T, kCount> d[kInFlight];
#pragma unroll
    for (int n = 0; n < kInFlight; ++n) {
      const int64_t c = base + n * 32 * kCount;
      if (c < rows.features) {
        in[n] = In::at(gate_up, c, rows.features);
        d[n] = Lanes<T, kCount>::at(d_hidden + c);
      }
    }
#pragma unroll
    for (int n = 0; n < kInFlight; ++n) {
      const int64_t c = base + n * 32 * kCount;
      if (c < rows.features) {
        In d_in;
        Lanes<T, kCount> h;
#pragma unroll
        for (int i = 0; i < kCount; ++i) {
          const Feature<A> f =
              feature_of<T, kClamped, A>(in[n].number(In::gate(i)), in[n].number(In::up(i)), limit, alpha);
          const A activation = f.glu * f.linear, d_h = d[n].number(i), d_activation = w * d_h;
          product += d_h * activation;
          h.set(i, w * activation);
          d_in.set(In::gate(i), d_activation * f.linear * f.d_glu);
          d_in.set(In::up(i), d_activation * f.glu * f.d_linear);
        }
        d_in.to(d_gate_up, c, rows.features);
        if (hidden != nullptr) h.to(hidden + c);
      }
    }
  }
  if (out.d_weight == nullptr) return;
#pragma unroll
  for (int lane = 16; lane > 0; lane /= 2) product += __shfl_xor_sync(0xffffffffu, product, lane);
  if (threadIdx.x % 32 == 0) out.d_weight[row] = rounded_to<T>(product);
}

/// Calls launch(clamped, alternating) with constants.
template <typename Launch>
void with_form(const GatedForm& form, const Launch& launch) {
  if (form.clamped) {
    form.alternating ? launch(std::true_type(), std::true_type()) : launch(std::true_type(), std::false_type());
  } else {
    form.alternating ? launch(std::false_type(), std::true_type()) : launch(std::false_type(), std::false_type());
  }
}

unsigned blocks_for(const GatedRows& rows) { return static_cast<unsigned>((rows.rows + kWarps - 1) / kWarps); }

template <typename T, int kCount>
void forward(const GatedForm& form, const GatedRows& rows, const T* gate_up, const T* weight, T* hidden,
             cudaStream_t stream) {
  with_form(form, [&](auto clamped, auto alternating) {
    activation_kernel<T, kCount, decltype(clamped)::value, decltype(alternating)::value>
        <<<blocks_for(rows), kThreads, 0, stream>>>(rows, static_cast<Wide<T>>(form.limit),
                                                    static_cast<Wide<T>>(form.alpha), gate_up, weight, hidden);
  });
}

template <typename T, int kCount>
void backward(const GatedForm& form, const GatedRows& rows, const T* gate_up, const T* weight, const T* d_hidden,
              const GatedGradients<T>& out, cudaStream_t stream) {
  with_form(form, [&](auto clamped, auto alternating) {
    backward_kernel<T, kCount, decltype(clamped)::value, decltype(alternating)::value>
        <<<blocks_for(rows), kThreads, 0, stream>>>(rows, static_cast<Wide<T>>(form.limit),
                                                    static_cast<Wide<T>>(form.alpha), gate_up, weight, d_hidden, out);
  });
}

}  // namespace

template <typename T>
void gated_activation_cuda(const GatedForm& form, const GatedRows& rows, const T* gate_up, const T* weight, T* hidden,
                           cudaStream_t stream) {
  if (rows.rows == 0 || rows.features == 0) return;
  const int64_t F = rows.features;
  const bool wide = takes_vectors(gate_up, rows.gate_up_stride, F) && takes_vectors(hidden, rows.hidden_stride, F);
  wide ? forward<T, kVectorOf<T>>(form, rows, gate_up, weight, hidden, stream)
       : forward<T, 1>(form, rows, gate_up, weight, hidden, stream);
}

template <typename T>
void gated_activation_backward_cuda(const GatedForm& form, const GatedRows& rows, const T* gate_up, const T* weight,
                                    const T* d_hidden, const GatedGradients<T>& out, cudaStream_t stream) {
  if (rows.rows == 0) return;
  const int64_t F = rows.features;
  const bool wide = takes_vectors(gate_up, rows.gate_up_stride, F) &&
                    takes_vectors(d_hidden, rows.d_hidden_stride, F) &&
                    takes_vectors(out.d_gate_up, rows.d_gate_up_stride, F) &&
                    (out.hidden == nullptr || takes_vectors(out.hidden, rows.hidden_stride, F));
  wide ? backward<T, kVectorOf<T>>(form, rows, gate_up, weight, d_hidden, out, stream)
       : backward<T, 1>(form, rows, gate_up, weight, d_hidden, out, stream);
}

#define MOETUNE_GATED_ACTIVATION(T)                                                                              \
  template void gated_activation_cuda(const GatedForm&, const GatedRows&, const T*, const T*, T*, cudaStream_t); \
  template void gated_activation_backward_cuda(const GatedForm&, const GatedRows&, const T*, const T*, const T*, \
                                               const GatedGradients<T>&, cudaStream_t);
MOETUNE_GATED_ACTIVATION(Bf16Bits)
MOETUNE_GATED_ACTIVATION(float)
MOETUNE_GATED_ACTIVATION(double)
#undef MOETUNE_GATED_ACTIVATION

}  // namespace moetune
