// Numbers of a row as one thread reads and writes them, 16 bytes at a time, and what it computes with: for kernels that
// are bound by memory.
//
//   const auto in = Lanes<T, kCount>::at(row + column);   // one access; kCount * sizeof(T) bytes, so aligned
//   in.number(i)                                          // bf16 as fp32
//   Lanes<T, kCount> out;  out.set(i, y);  out.to(row + column);
#pragma once

#include <cuda_bf16.h>

#include <cstdint>

#include "parallel/base/raw_numbers.h"

namespace moetune {

/// bf16 and fp32 are computed with in fp32, fp64 in fp64.
template <typename T>
struct ArithmeticOf {
  using Type = float;
};
template <>
struct ArithmeticOf<double> {
  using Type = double;
};
template <typename T>
using Arithmetic = typename ArithmeticOf<T>::Type;

__device__ inline float number_of(Bf16Bits x) { return __uint_as_float(static_cast<uint32_t>(x.bits) << 16); }
__device__ inline float number_of(float x) { return x; }
__device__ inline double number_of(double x) { return x; }

/// Rounded to the nearest, ties to even.
__device__ inline void put(Bf16Bits& to, float x) { to.bits = __bfloat16_as_ushort(__float2bfloat16_rn(x)); }
__device__ inline void put(float& to, float x) { to = x; }
__device__ inline void put(double& to, double x) { to = x; }

/// As many of them as 16 bytes hold.
template <typename T>
inline constexpr int kLanes = 16 / static_cast<int>(sizeof(T));

template <typename T, int kCount>
struct alignas(kCount * sizeof(T)) Lanes {
  T values[kCount];

  __device__ static Lanes at(const T* from) { return *reinterpret_cast<const Lanes*>(from); }
  __device__ void to(T* where) const { *reinterpret_cast<Lanes*>(where) = *this; }
  __device__ Arithmetic<T> number(int i) const { return number_of(values[i]); }
  __device__ void set(int i, Arithmetic<T> x) { put(values[i], x); }
};

}  // namespace moetune
