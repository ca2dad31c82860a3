#include "moe/head.h"

#include <torch/csrc/autograd/autograd.h>

#include "moe/rms_norm.h"

namespace moetune {

HeadResult Head::loss(const at::Tensor& x_TD, const at::Tensor& target_row, const at::Tensor& target, double scale, bool backward) {
  const at::ScalarType wide = accumulate_dtype(x_TD.scalar_type());
  HeadResult result;
  result.loss_sum = at::zeros({}, x_TD.options().dtype(wide));
  if (backward) result.d_x_TD = at::zeros_like(x_TD);
  at::NoGradGuard no_grad;
  at::Tensor weight_VD = weight_VD_.detach();
  const int64_t num_targets = target_row.size(0);
  for (int64_t first = 0; first < num_targets; first += chunk_rows_) {
    const int64_t count = std::min(chunk_rows_, num_targets - first);
    at::Tensor row_C = target_row.narrow(0, first, count);
    at::Tensor target_C1 = target.narrow(0, first, count).unsqueeze(1);
    at::Tensor x_CD = x_TD.index_select(0, row_C);
    at::Tensor normed_CD;
    {
      at::AutoGradMode with_graph(backward);
      if (backward) x_CD.requires_grad_();
      normed_CD = rms_norm(x_CD, norm_D_, eps_);
    }
    at::Tensor hidden_CD = normed_CD.detach();
    at::Tensor log_probability_CV = at::linear(hidden_CD, weight_VD).to(wide).log_softmax(-1);
    result.loss_sum.sub_(log_probability_CV.gather(1, target_C1).sum());
    if (!backward) continue;
    // d(scale * loss) / d logits = scale * (softmax - one hot)
    at::Tensor d_logits_CV = log_probability_CV.exp_();
    d_logits_CV.scatter_add_(1, target_C1, at::full_like(target_C1, -1, d_logits_CV.options()));
    d_logits_CV = d_logits_CV.mul_(scale).to(x_TD.scalar_type());
    if (weight_ != nullptr) weight_->gradient().add_(d_logits_CV.t().matmul(hidden_CD));
    std::vector<at::Tensor> inputs{x_CD};
    if (norm_ != nullptr) inputs.push_back(norm_->working);
    auto gradients = torch::autograd::grad({normed_CD}, inputs, {d_logits_CV.matmul(weight_VD)});
    result.d_x_TD.index_copy_(0, row_C, gradients[0]);
    if (norm_ != nullptr) norm_->add_gradient(gradients[1]);
  }
  return result;
}

at::Tensor Head::logits(const at::Tensor& x_TD) const {
  at::NoGradGuard no_grad;
  return at::linear(rms_norm(x_TD, norm_D_, eps_), weight_VD_);
}

int64_t Head::chunk_bytes(int64_t chunk_rows, int64_t vocab, at::ScalarType compute) {
  const at::ScalarType wide = accumulate_dtype(compute);
  const int64_t as_computed = wide == compute ? 0 : static_cast<int64_t>(c10::elementSize(compute));
  return chunk_rows * vocab * (as_computed + 2 * static_cast<int64_t>(c10::elementSize(wide)));
}

}  // namespace moetune
