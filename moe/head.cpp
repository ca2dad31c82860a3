#include "moe/head.h"

#include <torch/csrc/autograd/autograd.h>

#include "moe/cross_entropy.h"
#include "moe/rms_norm.h"

namespace moetune {

at::Tensor Head::log_sum_of_all(const at::Tensor& logits_CV) const {
  at::Tensor own_C1 = log_sum_exp(logits_CV);
  if (axis_.size() == 1) return own_C1;
  at::Tensor largest_C1 = own_C1.clone();
  axis_.max(largest_C1);
  at::Tensor sum_C1 = (own_C1 - largest_C1).exp_();
  axis_.sum(sum_C1);
  return sum_C1.log_().add_(largest_C1);
}

HeadResult Head::loss(const at::Tensor& x_UD, const at::Tensor& target_row, const at::Tensor& target, double scale,
                      bool backward, const at::Tensor& target_weight) {
  const at::ScalarType wide = accumulate_dtype(x_UD.scalar_type());
  HeadResult result;
  result.loss_sum = at::zeros({}, x_UD.options().dtype(wide));
  if (backward) result.d_x_UD = at::zeros_like(x_UD);
  else result.loss_n = at::zeros({target_row.size(0)}, result.loss_sum.options());
  at::NoGradGuard no_grad;
  at::Tensor weight_VD = weights_.weight_VD.detach();
  const int64_t num_targets = target_row.size(0);
  for (int64_t first = 0; first < num_targets; first += chunk_rows_) {
    const int64_t count = std::min(chunk_rows_, num_targets - first);
    at::Tensor row_C = target_row.narrow(0, first, count);
    at::Tensor own_C1;  // targets in this rank's part of the vocabulary
    at::Tensor target_C1 = part_.rows_of(target.narrow(0, first, count).unsqueeze(1), own_C1);
    at::Tensor x_CD = x_UD.index_select(0, row_C);
    at::Tensor normed_CD;
    {
      at::AutoGradMode with_graph(backward);
      if (backward) x_CD.requires_grad_();
      normed_CD = rms_norm(x_CD, weights_.norm_D, eps_);
    }
    at::Tensor hidden_CD = normed_CD.detach();
    at::Tensor logits_CV = at::linear(hidden_CD, weight_VD);
    at::Tensor target_logit_C1 = logits_CV.gather(1, target_C1).to(wide).mul_(own_C1);
    axis_.sum(target_logit_C1);
    at::Tensor log_sum_C1 = log_sum_of_all(logits_CV);
    at::Tensor loss_C1 = log_sum_C1 - target_logit_C1, weight_C1;
    if (target_weight.defined()) {
      weight_C1 = target_weight.narrow(0, first, count).to(wide).unsqueeze(1);
      loss_C1.mul_(weight_C1);
    }
    result.loss_sum.add_(loss_C1.sum());
    if (!backward) {
      result.loss_n.narrow(0, first, count).copy_(loss_C1.squeeze(1));
      continue;
    }
    const at::Tensor d_logits_CV =
        cross_entropy_gradient(std::move(logits_CV), log_sum_C1, {target_C1, own_C1}, scale, weight_C1);
    if (weights_.weight != nullptr) weights_.weight->gradient().add_(d_logits_CV.t().matmul(hidden_CD));
    std::vector<at::Tensor> inputs{x_CD};
    if (weights_.norm != nullptr) inputs.push_back(weights_.norm->working);
    auto gradients = torch::autograd::grad({normed_CD}, inputs, {d_logits_CV.matmul(weight_VD)});
    result.d_x_UD.index_copy_(0, row_C, gradients[0]);
    if (weights_.norm != nullptr) weights_.norm->add_gradient(gradients[1]);
  }
  return result;
}

at::Tensor Head::logits(const at::Tensor& x_UD) const {
  at::NoGradGuard no_grad;
  at::Tensor own_UV = at::linear(rms_norm(x_UD, weights_.norm_D, eps_), weights_.weight_VD);
  if (axis_.size() == 1) return own_UV;
  at::Tensor all_UV = at::zeros({x_UD.size(0), vocab_}, own_UV.options());
  all_UV.narrow(1, part_.first, part_.count).copy_(own_UV);
  axis_.sum(all_UV);
  return all_UV;
}

int64_t Head::chunk_bytes(int64_t chunk_rows, int64_t vocab, at::ScalarType compute) {
  const at::ScalarType wide = accumulate_dtype(compute);
  const int64_t as_computed = wide == compute ? 0 : static_cast<int64_t>(c10::elementSize(compute));
  return chunk_rows * vocab * (as_computed + 2 * static_cast<int64_t>(c10::elementSize(wide)));
}

}  // namespace moetune
