// Numbers of a row as one thread reads and writes them, 16 bytes at a time, and what it computes with: for kernels that
// are bound by memory.
//
//   const auto in = Lanes<T, kCount>::at(row + column);   // one access; kCount * sizeof(T) bytes, so aligned
//   in.number(i)                                          // bf16 as fp32
//   Lanes<T, kCount> out;  out.set(i, y);  out.to(row + column);
#pragma once

#include "parallel/device/row_vectors.cuh"

namespace moetune {

template <typename T, int kCount>
struct alignas(kCount * sizeof(T)) Lanes {
  T values[kCount];

  __device__ static Lanes at(const T* from) { return *reinterpret_cast<const Lanes*>(from); }
  __device__ void to(T* where) const { *reinterpret_cast<Lanes*>(where) = *this; }
  __device__ Wide<T> number(int i) const { return widen(values[i]); }
  __device__ void set(int i, Wide<T> x) { values[i] = rounded_to<T>(x); }
};

}  // namespace moetune
