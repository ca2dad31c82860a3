#include "moe/embedding.h"

#include <algorithm>

namespace moetune {

VocabularyPart VocabularyPart::of(int64_t vocab, const TensorAxis& axis) {
  const int64_t most = axis.rows_of(vocab), first = std::min(vocab, axis.index() * most);
  return {first, std::min(most, vocab - first)};
}

at::Tensor VocabularyPart::rows_of(const at::Tensor& token, at::Tensor& own) const {
  at::Tensor row = token - first;
  own = row.ge(0).logical_and_(row.lt(count));
  return row.mul_(own);
}

at::Tensor Embedding::embed(const at::Tensor& token_U) const {
  at::NoGradGuard no_grad;
  if (axis_.size() == 1) return weight_VD_.index_select(0, token_U);
  at::Tensor own_U;
  at::Tensor row_U = part_.rows_of(token_U, own_U);
  return axis_.reduce_scatter_rows(weight_VD_.index_select(0, row_U).masked_fill_(own_U.logical_not().unsqueeze(1), 0));
}

void Embedding::add_gradient(const at::Tensor& token_U, const at::Tensor& d_x_TD) {
  at::NoGradGuard no_grad;
  at::Tensor& gradient_VD = parameter_->gradient();
  at::Tensor d_x_UD = axis_.gather_rows(d_x_TD, token_U.size(0)).to(gradient_VD.scalar_type());
  at::Tensor row_U = token_U;
  if (axis_.size() > 1) {
    at::Tensor own_U;
    row_U = part_.rows_of(token_U, own_U);
    d_x_UD = d_x_UD.masked_fill(own_U.logical_not().unsqueeze(1), 0);
  }
  gradient_VD.index_add_(0, row_U, d_x_UD);
}

}  // namespace moetune
