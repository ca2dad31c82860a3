// The router on cases worked out by hand, and every combination of its values against plain loops over one token's
// logits, differentiated by finite differences.
#include "tests/support/catch.h"

#include <torch/csrc/autograd/autograd.h>

#include <algorithm>
#include <cmath>
#include <numeric>

#include "moe/router.h"
#include "tests/support/numbers.h"

using namespace moetune;

namespace {

using Scores = RouterSpec::Scores;
using Choice = RouterSpec::Choice;
using Experts = std::vector<int64_t>;

/// DeepSeek-V3's values.
RouterSpec spec_of(int64_t experts, int64_t groups, int64_t top_groups, int64_t top_k) {
  RouterSpec spec;
  spec.experts = experts;
  spec.top_k = top_k;
  spec.choice = Choice::kGroupsByBestTwo;
  spec.num_groups = groups;
  spec.top_groups = top_groups;
  spec.correction_bias = true;
  spec.normalise_eps = 1e-20;
  spec.scale = 2.5;
  return spec;
}

Router router_of(const RouterSpec& spec, const at::Tensor& weight_ED, const at::Tensor& correction_E) {
  return {spec, {weight_ED, correction_E, {}, nullptr}};
}

Experts row_of(const at::Tensor& expert_TK, int64_t row) {
  const at::Tensor values = expert_TK[row].contiguous();
  return {values.const_data_ptr<int64_t>(), values.const_data_ptr<int64_t>() + values.numel()};
}

Experts sorted_row(const at::Tensor& expert_TK, int64_t row) {
  Experts experts = row_of(expert_TK, row);
  std::sort(experts.begin(), experts.end());
  return experts;
}

using Numbers = std::vector<double>;

Numbers softmax(const Numbers& x) {
  Numbers e;
  for (const double value : x) e.push_back(std::exp(value));
  const double sum = std::accumulate(e.begin(), e.end(), 0.0);
  for (double& value : e) value /= sum;
  return e;
}

/// Of numbers that differ: positions of the `count` largest, the largest first.
Experts best(const Numbers& x, size_t count) {
  Experts order(x.size());
  std::iota(order.begin(), order.end(), 0);
  std::sort(order.begin(), order.end(), [&](int64_t a, int64_t b) { return x[a] > x[b]; });
  order.resize(count);
  return order;
}

/// One token's routing.
struct SlowRouting {
  Numbers score, probability, weight;
  Experts chosen;
};

SlowRouting slow_routing(const RouterSpec& spec, const Numbers& logit, const Numbers& correction,
                         const Experts* replayed = nullptr) {
  SlowRouting r;
  if (spec.scores == Scores::kSigmoid) {
    for (const double l : logit) r.score.push_back(1 / (1 + std::exp(-l)));
    const double sum = std::accumulate(r.score.begin(), r.score.end(), 0.0);
    for (const double s : r.score) r.probability.push_back(s / sum);
  } else {
    r.probability = softmax(logit);
    r.score = spec.scores == Scores::kSoftmax ? r.probability : logit;
  }
  Numbers c = r.score;
  if (spec.correction_bias) {
    for (size_t i = 0; i < c.size(); ++i) c[i] += correction[i];
  }
  if (spec.choice != Choice::kGreedy) {
    const size_t of_group = c.size() / spec.num_groups;
    Numbers group;
    for (int64_t g = 0; g < spec.num_groups; ++g) {
      Numbers members(c.begin() + g * of_group, c.begin() + (g + 1) * of_group);
      std::sort(members.rbegin(), members.rend());
      group.push_back(spec.choice == Choice::kGroupsByMax ? members[0] : members[0] + members[1]);
    }
    const Experts open = best(group, spec.top_groups);
    for (size_t i = 0; i < c.size(); ++i) {
      if (std::find(open.begin(), open.end(), i / of_group) == open.end()) c[i] = -1e300;
    }
  }
  r.chosen = replayed != nullptr ? *replayed : best(c, spec.top_k);
  for (const int64_t i : r.chosen) r.weight.push_back(r.score[i]);
  if (spec.scores == Scores::kSoftmaxOfChosen) r.weight = softmax(r.weight);
  else if (spec.normalise) {
    const double sum = std::accumulate(r.weight.begin(), r.weight.end(), spec.normalise_eps);
    for (double& w : r.weight) w /= sum;
  }
  for (double& w : r.weight) w *= spec.scale;
  return r;
}

Numbers numbers_of(const at::Tensor& x) {
  const at::Tensor flat = x.detach().contiguous().flatten();
  return {flat.const_data_ptr<double>(), flat.const_data_ptr<double>() + flat.numel()};
}

}  // namespace

TEST_CASE("experts come from the best groups, by score plus bias, ties to the lower", "[router]") {
  const RouterSpec spec = spec_of(8, 4, 2, 3);
  const at::Tensor weight = at::zeros({8, 4});
  // Groups of two: sums 1.0, 1.2, 1.05, 0.5. Expert 0 has the best score of all and the third group.
  const at::Tensor score = at::tensor({0.9, 0.1, 0.6, 0.6, 0.5, 0.55, 0.2, 0.3}).view({1, 8}).to(at::kFloat);
  SECTION("no bias") {
    CHECK(sorted_row(router_of(spec, weight, at::zeros({8})).choose(score), 0) == Experts{2, 3, 5});
  }
  SECTION("a bias opens group 0, and does not enter the weights") {
    at::Tensor bias = at::zeros({8});
    bias[0] = 1.0;
    const Router router = router_of(spec, weight, bias);
    const at::Tensor chosen = router.choose(score);
    CHECK(sorted_row(chosen, 0) == Experts{0, 2, 3});
    const at::Tensor sorted = std::get<0>(router.weights(score, chosen).sort(-1, true));
    CHECK(distance(sorted, at::tensor({0.9, 0.6, 0.6}).view({1, 3}) * (2.5 / 2.1)) < 1e-6);
  }
  SECTION("where score plus bias is negative, closed groups stay closed") {
    CHECK(sorted_row(router_of(spec, weight, at::full({8}, -2.0)).choose(score), 0) == Experts{2, 3, 5});
  }
  SECTION("ties") {
    CHECK(row_of(router_of(spec, weight, at::zeros({8})).choose(at::full({1, 8}, 0.5)), 0) == Experts{0, 1, 2});
    RouterSpec by_max = spec;
    by_max.choice = Choice::kGroupsByMax;
    CHECK(row_of(router_of(by_max, weight, at::zeros({8})).choose(at::full({1, 8}, 0.5)), 0) == Experts{0, 1, 2});
  }
  SECTION("by their best alone, group 0 is open") {
    RouterSpec by_max = spec;
    by_max.choice = Choice::kGroupsByMax;
    CHECK(row_of(router_of(by_max, weight, at::zeros({8})).choose(score), 0) == Experts{0, 2, 3});
  }
  SECTION("one group is plain top-k") {
    CHECK(sorted_row(router_of(spec_of(8, 1, 1, 3), weight, at::zeros({8})).choose(score), 0) == Experts{0, 2, 3});
  }
  SECTION("no tokens") {
    CHECK(router_of(spec, weight, at::zeros({8})).choose(at::zeros({0, 8})).sizes() == at::IntArrayRef({0, 3}));
  }
}

TEST_CASE("every combination of a router's values is that of plain loops", "[router]") {
  constexpr int64_t T = 9, D = 5, E = 8, K = 3;
  const at::Tensor correction = random_normal({E}, 3) * 0.4, bias = leaf(random_normal({E}, 4));
  const at::Tensor x = leaf(random_normal({T, D}, 1)), weight = leaf(random_normal({E, D}, 2));
  const at::Tensor d_weights = random_normal({T, K}, 5), d_probabilities = random_normal({T, E}, 6);
  const at::Tensor to_x = random_normal({T, D}, 7), to_weight = random_normal({E, D}, 8),
                   to_bias = random_normal({E}, 9);
  for (const auto scores : {Scores::kSigmoid, Scores::kSoftmax, Scores::kSoftmaxOfChosen}) {
    for (const auto choice : {Choice::kGreedy, Choice::kGroupsByMax, Choice::kGroupsByBestTwo}) {
      for (int flags = 0; flags < 8; ++flags) {
        RouterSpec spec = spec_of(E, 4, 2, K);
        spec.scores = scores;
        spec.choice = choice;
        spec.correction_bias = (flags & 1) != 0;
        spec.bias = (flags & 2) != 0;
        spec.normalise = (flags & 4) != 0;
        spec.normalise_eps = 0.01;
        spec.scale = 1.7;
        INFO("scores " << static_cast<int>(scores) << ", choice " << static_cast<int>(choice) << ", flags " << flags);
        const Router router(
            spec, {weight, spec.correction_bias ? correction : at::Tensor(), spec.bias ? bias : at::Tensor(), nullptr});
        const at::Tensor score = router.scores(x), chosen = router.choose(score),
                         weights = router.weights(score, chosen), probabilities = router.probabilities(score);
        // The same sum once more, by loops, with the tensors moved by `step` along a direction.
        std::vector<Experts> slow_chosen(T);
        const auto slow_sum = [&](double step, bool choose) {
          const at::Tensor moved = (x + step * to_x).detach(), w = (weight + step * to_weight).detach(),
                           b = (bias + step * to_bias).detach();
          double sum = 0.0;
          for (int64_t t = 0; t < T; ++t) {
            Numbers logit;
            for (int64_t i = 0; i < E; ++i) {
              double l = spec.bias ? b[i].item<double>() : 0.0;
              for (int64_t d = 0; d < D; ++d) l += moved[t][d].item<double>() * w[i][d].item<double>();
              logit.push_back(l);
            }
            const SlowRouting slow =
                slow_routing(spec, logit, numbers_of(correction), choose ? nullptr : &slow_chosen[t]);
            if (choose) {
              slow_chosen[t] = slow.chosen;
              CHECK(row_of(chosen, t) == slow.chosen);
              CHECK(distance(score[t], at::tensor(slow.score, at::kDouble)) < 1e-14);
              CHECK(distance(weights[t], at::tensor(slow.weight, at::kDouble)) < 1e-14);
              CHECK(distance(probabilities[t], at::tensor(slow.probability, at::kDouble)) < 1e-14);
            }
            for (int64_t k = 0; k < K; ++k) sum += slow.weight[k] * d_weights[t][k].item<double>();
            for (int64_t i = 0; i < E; ++i) sum += slow.probability[i] * d_probabilities[t][i].item<double>();
          }
          return sum;
        };
        slow_sum(0.0, /*choose=*/true);
        const auto d = torch::autograd::grad({weights, probabilities}, {x, weight, bias}, {d_weights, d_probabilities},
                                             /*retain_graph=*/{}, /*create_graph=*/false, /*allow_unused=*/true);
        CHECK(d[2].defined() == spec.bias);
        double slope = ((d[0] * to_x).sum() + (d[1] * to_weight).sum()).item<double>();
        if (spec.bias) slope += (d[2] * to_bias).sum().item<double>();
        const double difference = (slow_sum(1e-5, false) - slow_sum(-1e-5, false)) / 2e-5;
        CHECK(slope == Approx(difference).epsilon(1e-7).margin(1e-8));
      }
    }
  }
}

TEST_CASE("scores are computed in fp32, whatever the input", "[router]") {
  const at::Tensor x = random_normal({6, 4}, 1, at::kBFloat16), weight = random_normal({8, 4}, 2, at::kBFloat16),
                   bias = random_normal({8}, 3, at::kBFloat16);
  const at::Tensor logit = x.to(at::kDouble).matmul(weight.to(at::kDouble).t()) + bias.to(at::kDouble);
  RouterSpec spec = spec_of(8, 4, 2, 3);
  spec.bias = true;
  for (const auto scores : {Scores::kSigmoid, Scores::kSoftmax, Scores::kSoftmaxOfChosen}) {
    spec.scores = scores;
    const at::Tensor score = Router(spec, {weight, at::zeros({8}), bias, nullptr}).scores(x);
    CHECK(score.scalar_type() == at::kFloat);
    const at::Tensor exact = scores == Scores::kSigmoid   ? 1 / (1 + (-logit).exp())
                             : scores == Scores::kSoftmax ? logit.exp() / logit.exp().sum(-1, true)
                                                          : logit;
    CHECK(distance(score, exact) < 1e-6);
  }
}

TEST_CASE("a router's adapter is a change of its map", "[router]") {
  constexpr int64_t T = 7, D = 6, E = 5;
  ParameterSet parameters{at::kCPU, at::kDouble};
  ParameterInfo info;
  info.name = "layers.0.mlp.gate";
  auto adapter = std::make_unique<Adapter>(AdapterSpec{2, 1.5, 0.0}, info, 0, E, D, 1, parameters);
  adapter->b().master().copy_(random_normal({E, 2}, 3));
  adapter->b().refresh_working();
  const at::Tensor x = leaf(random_normal({T, D}, 1)), weight = random_normal({E, D}, 2),
                   a = leaf(adapter->a().working), b = leaf(adapter->b().working), d = random_normal({T, E}, 4);
  std::vector<at::Tensor> held{x, adapter->a().working, adapter->b().working};
  const Router router(spec_of(E, 1, 1, 2), {weight, at::zeros({E}, at::kDouble), {}, std::move(adapter)});
  const at::Tensor score = router.scores(x), expected = x.matmul((weight + 1.5 * b.matmul(a)).t()).sigmoid();
  CHECK(distance(score, expected) < 1e-14);
  const auto got = torch::autograd::grad({score}, held, {d}),
             wanted = torch::autograd::grad({expected}, {x, a, b}, {d});
  for (size_t i = 0; i < got.size(); ++i) CHECK(distance(got[i], wanted[i]) < 1e-13);
}

TEST_CASE("the bias moves towards the mean load by its rate", "[router]") {
  Router router = router_of(spec_of(4, 1, 1, 1), at::zeros({4, 2}), at::tensor({0.5, 0.5, 0.5, 0.5}).to(at::kFloat));
  router.update_bias(long_tensor({10, 0, 4, 2}), 0.25);  // mean 4
  CHECK(at::equal(router.bias(), at::tensor({0.25, 0.75, 0.5, 0.75}).to(at::kFloat)));
}
