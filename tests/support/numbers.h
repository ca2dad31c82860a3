// Random tensors and comparisons for tests of numbers.
//
//   const at::Tensor x = random_normal({T, D}, /*seed=*/1);
//   CHECK(distance(y, expected) < 1e-12);
#pragma once

#include <ATen/CPUGeneratorImpl.h>
#include <torch/types.h>

namespace moetune {

/// Standard normal numbers, the same on every call.
inline at::Tensor random_normal(at::IntArrayRef shape, uint64_t seed, at::ScalarType dtype = at::kDouble) {
  return at::randn(shape, at::make_generator<at::CPUGeneratorImpl>(seed), at::TensorOptions(dtype));
}

/// |a - b| / |b| in fp64; the shapes must agree.
inline double distance(const at::Tensor& a, const at::Tensor& b) {
  if (a.sizes() != b.sizes()) return std::numeric_limits<double>::infinity();
  const at::Tensor difference = (a.detach() - b.detach()).to(at::kDouble);
  return difference.norm().item<double>() / std::max(1e-300, b.detach().to(at::kDouble).norm().item<double>());
}

/// A leaf with the values of `x`.
inline at::Tensor leaf(const at::Tensor& x) { return x.detach().clone().requires_grad_(); }

inline at::Tensor long_tensor(const std::vector<int64_t>& values) { return at::tensor(values, at::kLong); }

}  // namespace moetune
