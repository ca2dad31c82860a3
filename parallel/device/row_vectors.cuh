// What the kernels over rows share: numbers read and written 16 bytes at a time, rounding, and the sum over a row's
// threads.
//
//   using V = Vector<Number, kVec>;          // kVec numbers: as many as 16 bytes hold, or one
//   Wide<Number> x[kVec];
//   V::load(from).unpack(x);                 // one access, then arithmetic in fp32 (fp64 for fp64)
//   V::packed(x).store(to);                  // rounded to nearest, one access
#pragma once

#include <cuda_bf16.h>
#include <cuda_runtime.h>

#include <cstdint>

#include "parallel/base/raw_numbers.h"

namespace moetune {

__device__ inline float widen(Bf16Bits x) { return __uint_as_float(static_cast<uint32_t>(x.bits) << 16); }
__device__ inline float widen(float x) { return x; }
__device__ inline double widen(double x) { return x; }

template <typename Number>
__device__ inline Number rounded_to(Wide<Number> x) {
  return x;
}
template <>
__device__ inline Bf16Bits rounded_to<Bf16Bits>(float x) {
  return {__bfloat16_as_ushort(__float2bfloat16_rn(x))};
}

/// x as it is once it was stored as a Number.
template <typename Number>
__device__ inline Wide<Number> rounded(Wide<Number> x) {
  return widen(rounded_to<Number>(x));
}

/// Numbers that one access of a thread moves; aligned to their own size. Held as they lie in memory, which for bf16
/// takes half the registers of fp32.
template <typename Number, int kCount>
struct alignas(sizeof(Number) * kCount) Vector {
  Number raw[kCount];
  __device__ static Vector load(const Number* from) { return *reinterpret_cast<const Vector*>(from); }
  __device__ void store(Number* to) const { *reinterpret_cast<Vector*>(to) = *this; }
  __device__ void unpack(Wide<Number> (&x)[kCount]) const {
#pragma unroll
    for (int i = 0; i < kCount; ++i) x[i] = widen(raw[i]);
  }
  __device__ static Vector packed(const Wide<Number> (&x)[kCount]) {
    Vector v;
#pragma unroll
    for (int i = 0; i < kCount; ++i) v.raw[i] = rounded_to<Number>(x[i]);
    return v;
  }
};

template <>
struct alignas(16) Vector<Bf16Bits, 8> {
  uint32_t words[4];  // the earlier number of a pair in the low half
  __device__ static Vector load(const Bf16Bits* from) { return *reinterpret_cast<const Vector*>(from); }
  __device__ void store(Bf16Bits* to) const { *reinterpret_cast<Vector*>(to) = *this; }
  __device__ void unpack(float (&x)[8]) const {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      x[2 * i] = __uint_as_float(words[i] << 16);
      x[2 * i + 1] = __uint_as_float(words[i] & 0xffff0000u);
    }
  }
  __device__ static Vector packed(const float (&x)[8]) {
    Vector v;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const __nv_bfloat162 pair = __floats2bfloat162_rn(x[2 * i], x[2 * i + 1]);
      v.words[i] = static_cast<uint32_t>(__bfloat16_as_ushort(pair.y)) << 16 | __bfloat16_as_ushort(pair.x);
    }
    return v;
  }
};

/// Numbers of a 16-byte access.
template <typename Number>
inline constexpr int kVectorOf = 16 / sizeof(Number);

/// Whether rows of `width` numbers that begin `stride` apart at `first` can be read 16 bytes at a time.
template <typename Number>
bool takes_vectors(const Number* first, int64_t stride, int64_t width) {
  return reinterpret_cast<uintptr_t>(first) % 16 == 0 && stride % kVectorOf<Number> == 0 &&
         width % kVectorOf<Number> == 0;
}

/// The sum of x over the threads of a row, those with one threadIdx.y, the same on each and on every run. blockDim.x is
/// a power of two; above 32 it is the whole block. Every thread of the block calls it, once in a kernel.
template <typename W>
__device__ W row_sum(W x) {
  for (unsigned lane = min(blockDim.x, 32u) / 2; lane > 0; lane /= 2) x += __shfl_xor_sync(0xffffffffu, x, lane);
  if (blockDim.x <= 32) return x;
  __shared__ W of_warp[32];
  if (threadIdx.x % 32 == 0) of_warp[threadIdx.x / 32] = x;
  __syncthreads();
  x = 0;
  for (unsigned warp = 0; warp < blockDim.x / 32; ++warp) x += of_warp[warp];
  return x;
}

}  // namespace moetune
