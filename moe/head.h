// Final norm, output head and cross-entropy, forward and backward together, in chunks of tokens: T x V logits never
// exist.
//
//   HeadResult result = head.loss(x_UD, target_rows, targets, /*scale=*/1.0 / target_tokens, /*backward=*/true);
//
// loss_sum = sum over target rows of -weight log softmax(norm(x) W^T)[target], each weight 1 where none are given; d x
// = d(scale * loss_sum) / d x. Rows without a target are not multiplied by the head at all.
//
// On a tensor axis each rank multiplies all rows by its part of the vocabulary. Three numbers a row are exchanged: the
// ranks' own log-sum-exp, combined to that of the whole vocabulary, and the target's logit.
#pragma once

#include <torch/types.h>

#include "lora/adapters/parameter.h"
#include "moe/embedding.h"

namespace moetune {

struct HeadResult {
  /// scalar on the device, fp32 (fp64 in proofs): sum over the target rows, the same on every rank of the axis
  at::Tensor loss_sum;
  at::Tensor loss_n;  ///< of each target, weight included, in the dtype of the sum; undefined with backward
  at::Tensor d_x_UD;  ///< what this rank's part of the vocabulary adds to it; undefined without backward
};

/// A head and its final norm. weight_VD (rows of this rank's part of the vocabulary) and norm_D in compute dtype;
/// parameters are null where they do not train.
struct HeadWeights {
  at::Tensor norm_D, weight_VD;
  Parameter* norm = nullptr;
  Parameter* weight = nullptr;
};

class Head {
 public:
  Head(HeadWeights weights, int64_t vocab, double eps, int64_t chunk_rows, const TensorAxis& axis = {})
      : weights_(std::move(weights)),
        vocab_(vocab),
        part_(VocabularyPart::of(vocab, axis)),
        eps_(eps),
        chunk_rows_(chunk_rows),
        axis_(axis) {}

  /// x_UD: rows of all ranks of the axis, the same on each. target_row [n] int64: rows of x that have a target; target
  /// [n] int64: their tokens; target_weight [n] fp32: how much each counts, undefined: 1. Gradients of parameters are
  /// added: the norm's is what this rank's part adds to it. Collective over the axis.
  HeadResult loss(const at::Tensor& x_UD, const at::Tensor& target_row, const at::Tensor& target, double scale,
                  bool backward, const at::Tensor& target_weight = {});
  /// Logits of all rows over the whole vocabulary, [U, V]: for tests and small outputs only. Collective over the axis.
  at::Tensor logits(const at::Tensor& x_UD) const;
  /// Bytes of the logits of a chunk at their most, over `vocab` numbers a row: as computed, in the accumulation dtype,
  /// and their softmax. GPUs, whose gradient overwrites the logits as computed, need less.
  static int64_t chunk_bytes(int64_t chunk_rows, int64_t vocab, at::ScalarType compute);

 private:
  /// log sum exp over the whole vocabulary of logits over this rank's part, [C, 1].
  at::Tensor log_sum_of_all(const at::Tensor& logits_CV) const;

  HeadWeights weights_;
  int64_t vocab_;
  VocabularyPart part_;
  double eps_;
  int64_t chunk_rows_;
  TensorAxis axis_;
};

}  // namespace moetune
