// How often each small number occurs, counted on the device without a wait of the host.
//
//   at::Tensor rows_E = tally(expert_TK, num_experts);
#pragma once

#include <ATen/ATen.h>

#include <cstdint>

namespace moetune {

/// int64 [bins]: occurrences of 0 .. bins - 1 in `values` (int64, any shape, none negative); larger values are not
/// counted.
inline at::Tensor tally(const at::Tensor& values, int64_t bins) {
  const at::Tensor bin = values.flatten().clamp_max(bins);
  return at::zeros({bins + 1}, bin.options()).scatter_add_(0, bin, at::ones_like(bin)).narrow(0, 0, bins);
}

}  // namespace moetune
