#include "moe/cross_entropy_kernels.h"

#include <cfloat>

#include "parallel/device/row_vectors.cuh"

namespace moetune {
namespace {

constexpr int kThreads = 512;
constexpr int kInFlight = 4;  // vectors that a thread has asked for before it uses the first

// The fast form errs by some 2^-21 where the result counts, and takes a third of the time.
__device__ float exponential(float x, Bf16Bits) { return __expf(x); }
__device__ float exponential(float x, float) { return expf(x); }
__device__ double exponential(double x, double) { return exp(x); }

/// sum exp(x) = exp(largest) * sum. The least maximum is a finite number: minus infinity less itself is no number.
template <typename W>
struct ExpSum {
  W largest, sum;
};
__device__ ExpSum<float> empty_sum(float) { return {-FLT_MAX, 0.0f}; }
__device__ ExpSum<double> empty_sum(double) { return {-DBL_MAX, 0.0}; }

template <typename Number, typename W>
__device__ ExpSum<W> joined(const ExpSum<W>& a, const ExpSum<W>& b) {
  const W largest = a.largest > b.largest ? a.largest : b.largest;
  return {largest,
          a.sum * exponential(a.largest - largest, Number{}) + b.sum * exponential(b.largest - largest, Number{})};
}

template <typename Number, int kVec>
__global__ void __launch_bounds__(kThreads)
    log_sum_exp_kernel(const Number* __restrict__ logits, int64_t vocab, Wide<Number>* __restrict__ log_sum) {
  using V = Vector<Number, kVec>;
  using W = Wide<Number>;
  const Number* row = logits + blockIdx.x * vocab;
  const int64_t vectors = vocab / kVec;
  ExpSum<W> total = empty_sum(W{});
  for (int64_t base = threadIdx.x; base < vectors; base += kThreads * kInFlight) {
    V v[kInFlight];
#pragma unroll
    for (int u = 0; u < kInFlight; ++u) {
      if (base + u * kThreads < vectors) v[u] = V::load(row + (base + u * kThreads) * kVec);
    }
#pragma unroll
    for (int u = 0; u < kInFlight; ++u) {
      if (base + u * kThreads >= vectors) continue;
      W x[kVec];
      v[u].unpack(x);
      W largest = total.largest;
#pragma unroll
      for (int i = 0; i < kVec; ++i) largest = x[i] > largest ? x[i] : largest;
      W sum = total.sum * exponential(total.largest - largest, Number{});
#pragma unroll
      for (int i = 0; i < kVec; ++i) sum += exponential(x[i] - largest, Number{});
      total = {largest, sum};
    }
  }
  __shared__ W largest_of[kThreads], sum_of[kThreads];
  largest_of[threadIdx.x] = total.largest;
  sum_of[threadIdx.x] = total.sum;
  for (unsigned half = kThreads / 2; half > 0; half /= 2) {
    __syncthreads();
    if (threadIdx.x >= half) continue;
    const ExpSum<W> other{largest_of[threadIdx.x + half], sum_of[threadIdx.x + half]};
    total = joined<Number>(total, other);
    largest_of[threadIdx.x] = total.largest;
    sum_of[threadIdx.x] = total.sum;
  }
  if (threadIdx.x == 0) log_sum[blockIdx.x] = total.largest + log(total.sum);
}

template <typename Number, int kVec>
__global__ void __launch_bounds__(kThreads) gradient_kernel(const __grid_constant__ CrossEntropyGradient<Number> p) {
  using V = Vector<Number, kVec>;
  using W = Wide<Number>;
  Number* row = p.logits + blockIdx.x * p.vocab;
  const int64_t vectors = p.vocab / kVec;
  const W log_sum = p.log_sum[blockIdx.x];
  const W factor = static_cast<W>(p.scale) * (p.weight != nullptr ? p.weight[blockIdx.x] : W(1));
  const int64_t target = p.own[blockIdx.x] ? p.target[blockIdx.x] : int64_t{-1};
  for (int64_t base = threadIdx.x; base < vectors; base += kThreads * kInFlight) {
    V v[kInFlight];
#pragma unroll
    for (int u = 0; u < kInFlight; ++u) {
      if (base + u * kThreads < vectors) v[u] = V::load(row + (base + u * kThreads) * kVec);
    }
#pragma unroll
    for (int u = 0; u < kInFlight; ++u) {
      const int64_t place = base + u * kThreads;
      if (place >= vectors) continue;
      W x[kVec];
      v[u].unpack(x);
      const int64_t of_target = target - place * kVec;
#pragma unroll
      for (int i = 0; i < kVec; ++i) {
        x[i] = factor * (exponential(x[i] - log_sum, Number{}) - (i == of_target ? W(1) : W(0)));
      }
      V::packed(x).store(row + place * kVec);
    }
  }
}

}  // namespace

template <typename Number>
void log_sum_exp_cuda(const Number* logits, int64_t rows, int64_t vocab, Wide<Number>* log_sum, cudaStream_t stream) {
  if (rows == 0) return;
  const auto grid = static_cast<unsigned>(rows);
  if (takes_vectors(logits, vocab, vocab)) {
    log_sum_exp_kernel<Number, kVectorOf<Number>><<<grid, kThreads, 0, stream>>>(logits, vocab, log_sum);
  } else {
    log_sum_exp_kernel<Number, 1><<<grid, kThreads, 0, stream>>>(logits, vocab, log_sum);
  }
}

template <typename Number>
void cross_entropy_gradient_cuda(const CrossEntropyGradient<Number>& p, cudaStream_t stream) {
  if (p.rows == 0 || p.vocab == 0) return;
  const auto grid = static_cast<unsigned>(p.rows);
  if (takes_vectors(p.logits, p.vocab, p.vocab)) {
    gradient_kernel<Number, kVectorOf<Number>><<<grid, kThreads, 0, stream>>>(p);
  } else {
    gradient_kernel<Number, 1><<<grid, kThreads, 0, stream>>>(p);
  }
}

template void log_sum_exp_cuda(const Bf16Bits*, int64_t, int64_t, float*, cudaStream_t);
template void log_sum_exp_cuda(const float*, int64_t, int64_t, float*, cudaStream_t);
template void log_sum_exp_cuda(const double*, int64_t, int64_t, double*, cudaStream_t);
template void cross_entropy_gradient_cuda(const CrossEntropyGradient<Bf16Bits>&, cudaStream_t);
template void cross_entropy_gradient_cuda(const CrossEntropyGradient<float>&, cudaStream_t);
template void cross_entropy_gradient_cuda(const CrossEntropyGradient<double>&, cudaStream_t);

}  // namespace moetune
