#include "moe/router.h"

#include <limits>

#include "parallel/base/error.h"

namespace moetune {
namespace {

at::ScalarType score_dtype(const at::Tensor& x) { return x.scalar_type() == at::kDouble ? at::kDouble : at::kFloat; }

}  // namespace

// topk leaves the order of equal values open; a stable sort does not.
at::Tensor top_indices(const at::Tensor& values, int64_t count) {
  return std::get<1>(values.sort(/*stable=*/true, -1, /*descending=*/true)).narrow(-1, 0, count);
}

Router::Router(const RouterSpec& spec, RouterTensors tensors) : spec_(spec), tensors_(std::move(tensors)) {
  MT_CHECK(tensors_.correction_E.defined() == spec_.correction_bias, "a router's correction bias");
  MT_CHECK(tensors_.logit_bias_E.defined() == spec_.bias, "a router's bias");
}

at::Tensor Router::scores(const at::Tensor& x_TD, const at::Tensor& token_T, const StepRandom& random) const {
  const at::ScalarType dtype = score_dtype(x_TD);
  at::Tensor logit_TE = at::linear(x_TD.to(dtype), tensors_.weight_ED.to(dtype));
  if (tensors_.logit_bias_E.defined()) logit_TE = logit_TE + tensors_.logit_bias_E.to(dtype);
  if (const Adapter* adapter = tensors_.adapter.get()) {
    const at::Tensor low_TR =
        at::linear(adapter->drop(x_TD, token_T, random).to(dtype), adapter->a().working.to(dtype));
    logit_TE = at::add(logit_TE, at::linear(low_TR, adapter->b().working.to(dtype)), adapter->scale());
  }
  switch (spec_.scores) {
    case RouterSpec::Scores::kSigmoid: return logit_TE.sigmoid();
    case RouterSpec::Scores::kSoftmax: return logit_TE.softmax(-1);
    case RouterSpec::Scores::kSoftmaxOfChosen: break;
  }
  return logit_TE;
}

at::Tensor Router::choose(const at::Tensor& score_TE) const {
  at::NoGradGuard no_grad;
  at::Tensor choice_TE = spec_.correction_bias ? score_TE + tensors_.correction_E : score_TE;
  if (spec_.choice != RouterSpec::Choice::kGreedy && spec_.num_groups > 1) {
    const bool by_max = spec_.choice == RouterSpec::Choice::kGroupsByMax;
    at::Tensor grouped = choice_TE.unflatten(-1, {spec_.num_groups, spec_.experts / spec_.num_groups});
    at::Tensor group_score = std::get<0>(grouped.topk(by_max ? 1 : 2, -1)).sum(-1);
    at::Tensor open =
        at::zeros_like(group_score, at::kBool).scatter_(-1, top_indices(group_score, spec_.top_groups), true);
    choice_TE =
        grouped.masked_fill(open.logical_not().unsqueeze(-1), -std::numeric_limits<double>::infinity()).flatten(-2);
  }
  return top_indices(choice_TE, spec_.top_k).contiguous();
}

at::Tensor Router::weights(const at::Tensor& score_TE, const at::Tensor& expert_TK) const {
  at::Tensor weight_TK = score_TE.gather(-1, expert_TK.clamp_max(spec_.experts - 1));
  if (spec_.scores == RouterSpec::Scores::kSoftmaxOfChosen) weight_TK = weight_TK.softmax(-1);
  else if (spec_.normalise) weight_TK = weight_TK / (weight_TK.sum(-1, true) + spec_.normalise_eps);
  return weight_TK * spec_.scale;
}

at::Tensor Router::probabilities(const at::Tensor& score_TE) const {
  switch (spec_.scores) {
    case RouterSpec::Scores::kSigmoid: break;
    case RouterSpec::Scores::kSoftmax: return score_TE;
    case RouterSpec::Scores::kSoftmaxOfChosen: return score_TE.softmax(-1);
  }
  return score_TE / score_TE.sum(-1, true);
}

void Router::update_bias(const at::Tensor& load_E, double rate) {
  at::NoGradGuard no_grad;
  at::Tensor& bias_E = tensors_.correction_E;
  at::Tensor load = load_E.to(bias_E.scalar_type());
  bias_E.add_((load.mean() - load).sign(), rate);
}

}  // namespace moetune
