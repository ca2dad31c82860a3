// The embedding of tokens, cut by vocabulary over the tensor axis: each rank has the rows of its tokens.
//
//   at::Tensor x_TD = embedding.embed(token_U);         // rows of all ranks' tokens in, this rank's rows out
//   embedding.add_gradient(token_U, d_x_TD);            // where it trains
#pragma once

#include <torch/types.h>

#include "lora/adapters/parameter.h"
#include "parallel/comm/tensor_axis.h"

namespace moetune {

/// The run of the vocabulary that a rank of the axis holds, of embedding and head alike; the last ranks' may be
/// shorter, or empty.
struct VocabularyPart {
  int64_t first = 0;
  int64_t count = 0;
  static VocabularyPart of(int64_t vocab, const TensorAxis& axis);
  /// Row of each token in this part, 0 for those of other parts; `own` receives which are of this part.
  at::Tensor rows_of(const at::Tensor& token, at::Tensor& own) const;
};

class Embedding {
 public:
  Embedding() = default;
  /// weight_VD: the rows of `part`, in compute dtype; `parameter` is null where they do not train.
  Embedding(at::Tensor weight_VD, Parameter* parameter, VocabularyPart part, const TensorAxis& axis)
      : weight_VD_(weight_VD), parameter_(parameter), part_(part), axis_(axis) {}

  /// token_U: int64, tokens of the ranks' rows, one rank's after the other, -1 for padding (rows of zeros; there is
  /// none on an axis of one). -> this rank's rows, without a graph. Collective over the axis.
  at::Tensor embed(const at::Tensor& token_U) const;
  /// Adds the gradient in the rows of embed(token_U). Collective over the axis.
  void add_gradient(const at::Tensor& token_U, const at::Tensor& d_x_TD);

  bool trains() const { return parameter_ != nullptr; }
  const at::Tensor& weight() const { return weight_VD_; }
  Parameter* parameter() const { return parameter_; }

 private:
  at::Tensor weight_VD_;
  Parameter* parameter_ = nullptr;
  VocabularyPart part_;
  TensorAxis axis_;
};

}  // namespace moetune
