// What of a differentiable function's output is wanted. Where a forward pass is done again for its backward pass alone,
// the numbers that nothing reads are not computed: those that were kept, and those that only what follows would take.
//
//   at::Tensor y = map.forward(x, token_T, random, Wanted::kGraph);   // y has its shape and its graph, no memory
#pragma once

#include <torch/types.h>

#include <limits>

namespace moetune {

enum class Wanted { kNumbers, kGraph };

/// Of this shape, one NaN for all of it: whoever reads it shows.
inline at::Tensor without_numbers(at::IntArrayRef sizes, const at::TensorOptions& options) {
  return at::full({}, std::numeric_limits<double>::quiet_NaN(), options).expand(sizes);
}

}  // namespace moetune
