#include "parallel/device/pinned_copy.h"

#include <ATen/ATen.h>
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAStream.h>

#include "parallel/base/error.h"
#include "parallel/device/pinned_copy_kernels.h"

namespace moetune {

void copy_from_pinned(const at::Tensor& to, const at::Tensor& from) {
  MT_CHECK(to.scalar_type() == from.scalar_type() && to.numel() == from.numel() && to.is_contiguous() &&
               from.is_contiguous(),
           "a copy of ", from.numel(), " numbers to ", to.numel());
  if (!to.is_cuda() || from.is_cuda() || !from.is_pinned()) {
    to.copy_(from, /*non_blocking=*/true);
    return;
  }
  const auto stream = c10::cuda::getCurrentCUDAStream(to.device().index());
  copy_bytes_cuda(from.const_data_ptr(), to.mutable_data_ptr(), static_cast<int64_t>(from.nbytes()), stream);
  C10_CUDA_CHECK(cudaGetLastError());
}

}  // namespace moetune
