// Final norm, output head and cross-entropy, forward and backward together, in chunks of tokens: T x V logits never exist.
//
//   HeadResult result = head.loss(x_TD, target_rows, targets, /*scale=*/1.0 / target_tokens, pass, /*backward=*/true);
//
// loss_sum = sum over target rows of -log softmax(norm(x) W^T)[target]; d x = d(scale * loss_sum) / d x. Rows without a target
// are not multiplied by the head at all.
#pragma once

#include <torch/types.h>

#include "lora/parameter.h"

namespace moetune {

struct HeadResult {
  at::Tensor loss_sum;  ///< scalar on the device, fp32 (fp64 in proofs): sum over this rank's target rows
  at::Tensor d_x_TD;    ///< undefined without backward
};

class Head {
 public:
  /// weight_VD and norm_D in compute dtype. Parameters are null where they do not train.
  Head(at::Tensor norm_D, at::Tensor weight_VD, double eps, Parameter* norm, Parameter* weight, int64_t chunk_rows)
      : norm_D_(norm_D), weight_VD_(weight_VD), eps_(eps), norm_(norm), weight_(weight), chunk_rows_(chunk_rows) {}

  /// target_row [n] int64: rows of x that have a target; target [n] int64: their tokens. Not collective.
  HeadResult loss(const at::Tensor& x_TD, const at::Tensor& target_row, const at::Tensor& target, double scale, bool backward);
  /// Logits of all rows, [T, V]: for tests and small outputs only.
  at::Tensor logits(const at::Tensor& x_TD) const;
  /// Bytes of the logits of a chunk at their most: as computed, in the accumulation dtype, and their log-softmax.
  static int64_t chunk_bytes(int64_t chunk_rows, int64_t vocab, at::ScalarType compute);

 private:
  at::Tensor norm_D_, weight_VD_;
  double eps_;
  Parameter *norm_, *weight_;
  int64_t chunk_rows_;
};

}  // namespace moetune
