#include "moe/router.h"

#include <limits>

namespace moetune {
namespace {

at::ScalarType score_dtype(const at::Tensor& x) { return x.scalar_type() == at::kDouble ? at::kDouble : at::kFloat; }

// topk leaves the order of equal values open; a stable sort gives ties to the lower number, on every device.
at::Tensor top_indices(const at::Tensor& values, int64_t count) {
  return std::get<1>(values.sort(/*stable=*/true, -1, /*descending=*/true)).narrow(-1, 0, count);
}

}  // namespace

at::Tensor Router::scores(const at::Tensor& x_TD) const {
  const at::ScalarType dtype = score_dtype(x_TD);
  return at::linear(x_TD.to(dtype), weight_ED_.to(dtype)).sigmoid();
}

at::Tensor Router::choose(const at::Tensor& score_TE) const {
  at::NoGradGuard no_grad;
  at::Tensor choice_TE = score_TE + bias_E_;
  if (spec_.num_groups > 1) {
    at::Tensor grouped = choice_TE.unflatten(-1, {spec_.num_groups, spec_.experts / spec_.num_groups});
    at::Tensor group_score = std::get<0>(grouped.topk(2, -1)).sum(-1);
    at::Tensor open =
        at::zeros_like(group_score, at::kBool).scatter_(-1, top_indices(group_score, spec_.top_groups), true);
    choice_TE =
        grouped.masked_fill(open.logical_not().unsqueeze(-1), -std::numeric_limits<double>::infinity()).flatten(-2);
  }
  return top_indices(choice_TE, spec_.top_k).contiguous();
}

at::Tensor Router::weights(const at::Tensor& score_TE, const at::Tensor& expert_TK) const {
  at::Tensor weight_TK = score_TE.gather(-1, expert_TK.clamp_max(spec_.experts - 1));
  if (spec_.normalise) weight_TK = weight_TK / (weight_TK.sum(-1, true) + spec_.normalise_eps);
  return weight_TK * spec_.scale;
}

at::Tensor Router::balance_loss(const at::Tensor& score_TE, const Slice& slice) const {
  const int64_t documents = slice.num_documents;
  at::Tensor length = slice.document_length.to(score_TE.scalar_type()).unsqueeze(-1);
  // Rows of padding are summed as one more document, which is left out.
  auto document_sums = [&](const at::Tensor& rows_TE) {
    at::Tensor zeros = at::zeros({documents + 1, spec_.experts}, score_TE.options().requires_grad(false));
    return zeros.index_add(0, slice.document_T, rows_TE).narrow(0, 0, documents);
  };
  at::Tensor chosen = at::zeros_like(score_TE).detach().scatter_(-1, top_indices(score_TE.detach(), spec_.top_k), 1.0);
  at::Tensor times_chosen = document_sums(chosen);
  axis_.sum(times_chosen);
  at::Tensor fraction = times_chosen / length * (static_cast<double>(spec_.experts) / spec_.top_k);
  at::Tensor probability = document_sums(score_TE / score_TE.sum(-1, true)) / length;
  return (fraction * probability).sum();
}

void Router::update_bias(const at::Tensor& load_E, double rate) {
  at::NoGradGuard no_grad;
  at::Tensor load = load_E.to(bias_E_.scalar_type());
  bias_E_.add_((load.mean() - load).sign(), rate);
}

}  // namespace moetune
