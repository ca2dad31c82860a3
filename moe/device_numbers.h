// From a tensor's dtype to the type that a CUDA kernel's template takes.
//
//   with_device_numbers(x.scalar_type(), [&](auto number) {
//     using T = decltype(number);                              // Bf16Bits, float or double
//     kernel_cuda(numbers<const T>(x), numbers<T>(y), c10::cuda::getCurrentCUDAStream());
//   });
#pragma once

#include <torch/types.h>

#include "parallel/base/raw_numbers.h"
#include "parallel/base/error.h"

namespace moetune {

template <typename Work>
void with_device_numbers(at::ScalarType dtype, const Work& work) {
  switch (dtype) {
    case at::kBFloat16: return work(Bf16Bits{});
    case at::kFloat: return work(float{});
    case at::kDouble: return work(double{});
    default: MT_CHECK(false, "kernels compute in bf16, fp32 or fp64, not ", toString(dtype));
  }
}

/// Its first number; null where the tensor is undefined.
template <typename T>
T* numbers(const at::Tensor& tensor) {
  return tensor.defined() ? reinterpret_cast<T*>(tensor.data_ptr()) : nullptr;
}

}  // namespace moetune
