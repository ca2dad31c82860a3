// Comparisons of a GPU's kernels with the CPU in fp64.
//
//   for (const auto dtype : kKernelDtypes) {
//     poison_freed_memory({y_bytes});
//     CHECK(distance_fp64(kernel(on_gpu(x, dtype)), kernel(as_seen(x, dtype))) < tolerance(dtype));
//   }
#pragma once

#include <c10/cuda/CUDAFunctions.h>

#include <algorithm>
#include <functional>
#include <limits>
#include <vector>

#include "tests/support/numbers.h"

namespace moetune {

inline constexpr at::ScalarType kKernelDtypes[] = {at::kBFloat16, at::kFloat, at::kDouble};

/// What a result that is rounded once or twice may be off by.
inline double tolerance(at::ScalarType dtype) {
  return dtype == at::kBFloat16 ? 4e-3 : dtype == at::kFloat ? 2e-6 : 1e-13;
}

/// x rounded to `dtype`, on the CPU in fp64: the numbers that a GPU computes with.
inline at::Tensor as_seen(const at::Tensor& x, at::ScalarType dtype) { return x.to(dtype).to(at::kDouble); }

inline double distance_fp64(const at::Tensor& actual, const at::Tensor& expected) {
  return distance(actual.detach().to(at::kCPU, at::kDouble), expected);
}

/// NaN in the memory that the allocator hands out next for tensors of this shape: what a kernel does not write shows.
inline void poison_freed_memory(at::IntArrayRef shape, at::ScalarType dtype) {
  std::vector<at::Tensor> freed;
  for (int i = 0; i < 4; ++i) {
    freed.push_back(at::full(shape, std::numeric_limits<double>::quiet_NaN(), at::device(at::kCUDA).dtype(dtype)));
  }
}

}  // namespace moetune
