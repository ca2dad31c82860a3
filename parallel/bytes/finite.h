// Weights that are no numbers, found where they are read: a NaN in one norm makes every loss NaN, a NaN in a router's
// bias silently changes which experts a token goes to.
//
//   require_finite(tensor, str(file, ": ", name));   // UserError with count and first place
//
// One pass over the bits on all threads, at the speed of memory.
#pragma once

#include <torch/types.h>

#include <cstdint>
#include <optional>
#include <string>

namespace moetune {

struct NonFinite {
  int64_t count = 0;
  int64_t first = 0;  ///< element, counted row by row
};

/// The values of `tensor` (contiguous, fp64, fp32, bf16, fp16 or FP8 e4m3, on any device) that are NaN or infinite.
/// Wider ones that bf16 would round to infinity count too: every model is computed or exported in bf16 somewhere.
/// Nothing if there are none.
std::optional<NonFinite> find_non_finite(const at::Tensor& tensor);

/// Throws UserError with `place` (file and tensor) in front unless all values are finite.
void require_finite(const at::Tensor& tensor, const std::string& place);

}  // namespace moetune
