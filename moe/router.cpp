#include "moe/router.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "moe/expert_choice_kernels.h"
#include "moe/wide_product.h"
#include "parallel/base/error.h"
#include "parallel/device/row_kernels.h"

namespace moetune {

// topk leaves the order of equal values open; a stable sort does not.
at::Tensor top_indices(const at::Tensor& values, int64_t count) {
  return std::get<1>(values.sort(/*stable=*/true, -1, /*descending=*/true)).narrow(-1, 0, count);
}

Router::Router(const RouterSpec& spec, RouterTensors tensors) : spec_(spec), tensors_(std::move(tensors)) {
  MT_CHECK(tensors_.correction_E.defined() == spec_.correction_bias, "a router's correction bias");
  MT_CHECK(tensors_.logit_bias_E.defined() == spec_.bias, "a router's bias");
}

at::Tensor Router::scores(const at::Tensor& x_TD, const at::Tensor& token_T, const StepRandom& random) const {
  at::Tensor logit_TE = wide_linear(x_TD, tensors_.weight_ED);
  const at::ScalarType wide = logit_TE.scalar_type();
  if (tensors_.logit_bias_E.defined()) logit_TE = logit_TE + tensors_.logit_bias_E.to(wide);
  if (const Adapter* adapter = tensors_.adapter.get()) {
    const at::Tensor low_TR = wide_linear(adapter->drop(x_TD, token_T, random), adapter->a().working);
    logit_TE = at::add(logit_TE, at::linear(low_TR, adapter->b().working.to(wide)), adapter->scale());
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
  const bool grouped = spec_.choice != RouterSpec::Choice::kGreedy && spec_.num_groups > 1;
  if (score_TE.is_cuda() && score_TE.scalar_type() == at::kFloat &&
      takes_choice(spec_.experts, grouped ? spec_.num_groups : 1)) {
    const at::Tensor scores = score_TE.contiguous();
    const at::Tensor correction_E =
        spec_.correction_bias ? tensors_.correction_E.to(at::kFloat).contiguous() : at::Tensor();
    const at::Tensor expert_TK = at::empty({scores.size(0), spec_.top_k}, scores.options().dtype(at::kLong));
    launch_rows(scores, [&](auto, cudaStream_t stream) {
      choose_experts_cuda({.score = scores.const_data_ptr<float>(),
                           .correction = numbers_of<const float>(correction_E),
                           .tokens = scores.size(0),
                           .experts = static_cast<int>(spec_.experts),
                           .top_k = static_cast<int>(spec_.top_k),
                           .groups = grouped ? static_cast<int>(spec_.num_groups) : 1,
                           .top_groups = static_cast<int>(spec_.top_groups),
                           .by_best_two = spec_.choice == RouterSpec::Choice::kGroupsByBestTwo,
                           .expert = expert_TK.mutable_data_ptr<int64_t>()},
                          stream);
    });
    return expert_TK;
  }
  at::Tensor choice_TE = spec_.correction_bias ? score_TE + tensors_.correction_E : score_TE;
  if (grouped) {
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

namespace {

/// That none of `drawn` of `all` are among `marked`, drawn without putting back.
double none_drawn(int64_t all, int64_t marked, int64_t drawn) {
  double chance = 1.0;
  for (int64_t i = 0; i < drawn; ++i) {
    chance *= std::max(0.0, static_cast<double>(all - marked - i)) / static_cast<double>(all - i);
  }
  return chance;
}

}  // namespace

// The groups of a rank's experts are among the chosen ones or not; of the experts of the chosen groups K are drawn.
double expected_remote_ranks(const RouterSpec& spec, int64_t ranks) {
  if (ranks <= 1) return 0.0;
  const int64_t G = std::max<int64_t>(1, spec.num_groups), g = G > 1 ? spec.top_groups : 1;
  const int64_t of_group = spec.experts / G, of_rank = spec.experts / ranks;
  const int64_t groups = std::max<int64_t>(1, of_rank / of_group);  // that a rank has experts of
  const int64_t in_each = std::min(of_rank, of_group);              // of its experts, in each of these
  double met = 0.0, chance = none_drawn(G, groups, g);              // of j = 0 of the rank's groups being chosen
  for (int64_t j = 1; j <= std::min(groups, g); ++j) {
    // Hypergeometric: C(groups, j) C(G - groups, g - j) / C(G, g).
    double ways = 1.0;
    for (int64_t i = 0; i < j; ++i) ways *= static_cast<double>(groups - i) / static_cast<double>(i + 1);
    for (int64_t i = 0; i < g - j; ++i) ways *= static_cast<double>(G - groups - i) / static_cast<double>(i + 1);
    for (int64_t i = 0; i < g; ++i) ways *= static_cast<double>(i + 1) / static_cast<double>(G - i);
    chance += ways;
    met += ways * (1.0 - none_drawn(g * of_group, j * in_each, spec.top_k));
  }
  MT_CHECK(std::abs(chance - 1.0) < 1e-9, "chances of chosen groups add up to ", chance);
  return met * static_cast<double>(ranks - 1);
}

PartCost router_cost(const RouterSpec& spec, int64_t width, const PassTraits& traits) {
  const int64_t E = spec.experts, K = spec.top_k, size = traits.element_bytes(), wide = traits.wide_bytes();
  PartCost cost;
  // Scores; of the chosen experts: numbers as int64, scores before and after normalising, weights.
  cost.saved = E * wide * (traits.balance_loss ? 4 : 1) + K * (8 + 3 * wide + size);
  // Where the product is one of wide numbers, its input is widened, and kept where something of the map trains.
  if (traits.trains_router && !traits.on_gpu() && size < wide) cost.saved += width * wide;
  cost.forward.scores = 2.0 * static_cast<double>(width * E);
  cost.backward.scores = (traits.trains_router ? 2.0 : 1.0) * cost.forward.scores;
  cost.forward.touched_bytes = static_cast<double>(4 * E * wide);
  cost.backward.touched_bytes = static_cast<double>(4 * E * wide);
  return cost;
}

}  // namespace moetune
