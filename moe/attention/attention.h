// What a block knows of its attention, whichever kind computes it.
//
//   std::unique_ptr<Attention> attention = ...;   // LatentAttention, GroupedQueryAttention
//   at::Tensor y_TD = attention->forward(x_TD, slice, angles, random, nullptr, Wanted::kNumbers);
//
// x_TD is normed already and y_TD is what attention adds to the residual stream. A kind is a class of its own that
// makes queries, keys and values in its way; within documents all of them attend through packed_attention().
#pragma once

#include <vector>

#include "lora/linear.h"
#include "moe/attention/rope.h"
#include "moe/attention/slice.h"
#include "moe/keep.h"

namespace moetune {

class Attention {
 public:
  virtual ~Attention() = default;
  /// x_TD [T, D] -> y_TD [T, D], differentiable; the slice's documents do not see each other. `angles`: of all U rows;
  /// unread in layers without positions. `kept`: as packed_attention() has it. `wanted`: of y_TD. Collective over the
  /// tensor axis, its backward pass too.
  virtual at::Tensor forward(const at::Tensor& x_TD, const Slice& slice, const RopeAngles& angles,
                             const StepRandom& random, KeptAttention* kept, Wanted wanted) const = 0;
  /// Its linear maps that exist, in the order of their use.
  virtual std::vector<Linear*> linears() const = 0;
};

}  // namespace moetune
