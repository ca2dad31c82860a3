// How a unit of tensors calls its CUDA kernels over rows: who takes them, and tensors as raw pointers.
//
//   if (!has_row_kernels(x)) return plain(x);
//   const at::Tensor x_ND = as_rows(x);
//   launch_rows(x, [&](auto number, cudaStream_t stream) {
//     using Number = decltype(number);
//     scale_rows_cuda(numbers_of<Number>(x_ND), x_ND.stride(0), ..., stream);
//   });
#pragma once

#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#include <torch/types.h>

#include "parallel/base/error.h"
#include "parallel/base/raw_numbers.h"

namespace moetune {

/// Whether x lies on a GPU in a dtype that the kernels are built for.
inline bool has_row_kernels(const at::Tensor& x) {
  const at::ScalarType dtype = x.scalar_type();
  return x.is_cuda() && (dtype == at::kBFloat16 || dtype == at::kFloat || dtype == at::kDouble);
}

/// x [..., D] as [N, D] with a row's numbers side by side; copied only where x does not lie like that.
inline at::Tensor as_rows(const at::Tensor& x) {
  const at::Tensor rows = x.dim() == 2 ? x : x.reshape({-1, x.size(-1)});
  return rows.stride(1) == 1 ? rows : rows.contiguous();
}

template <typename Number>
Number* numbers_of(const at::Tensor& tensor) {
  return tensor.defined() ? reinterpret_cast<Number*>(tensor.data_ptr()) : nullptr;
}

/// Calls launch(Number{}, stream) for x's dtype with x's GPU and its current stream, and throws what CUDA says of it.
template <typename Launch>
void launch_rows(const at::Tensor& x, const Launch& launch) {
  const c10::cuda::CUDAGuard guard(x.device());
  const cudaStream_t stream = c10::cuda::getCurrentCUDAStream();
  switch (x.scalar_type()) {
    case at::kBFloat16: launch(Bf16Bits{}, stream); break;
    case at::kFloat: launch(float{}, stream); break;
    case at::kDouble: launch(double{}, stream); break;
    default: MT_CHECK(false, "kernels over rows take bf16, fp32 or fp64, not ", x.toString());
  }
  C10_CUDA_CHECK(cudaGetLastError());
}

}  // namespace moetune
