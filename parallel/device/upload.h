// Small tables from the host to where they are read, without a wait of the host.
//
//   at::Tensor ends_e = uploaded(at::tensor(ends, at::kInt), device);
#pragma once

#include <ATen/ATen.h>

namespace moetune {

/// The numbers on `device`. A GPU gets them by way of pinned memory, in the order of the current stream; torch keeps
/// that memory until they are there.
inline at::Tensor uploaded(const at::Tensor& host, at::Device device) {
  if (device.is_cpu()) return host;
  return host.numel() == 0 ? at::empty_like(host, host.options().device(device))
                           : host.pin_memory().to(device, /*non_blocking=*/true);
}

}  // namespace moetune
