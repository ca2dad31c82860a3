// The router on cases worked out by hand; its losses against plain loops and finite differences.
#include "tests/support/catch.h"

#include <torch/csrc/autograd/autograd.h>

#include "moe/router.h"
#include "tests/support/numbers.h"

using namespace moetune;

namespace {

RouterSpec spec_of(int64_t experts, int64_t groups, int64_t top_groups, int64_t top_k) {
  RouterSpec spec;
  spec.experts = experts;
  spec.choice = groups > 1 ? RouterSpec::Choice::kGroupsByBestTwo : RouterSpec::Choice::kGreedy;
  spec.num_groups = groups;
  spec.top_groups = top_groups;
  spec.top_k = top_k;
  spec.correction_bias = true;
  spec.normalise_eps = 1e-20;
  spec.scale = 2.5;
  return spec;
}

std::vector<int64_t> sorted_row(const at::Tensor& expert_TK, int64_t row) {
  const at::Tensor values = std::get<0>(expert_TK[row].sort());
  return {values.const_data_ptr<int64_t>(), values.const_data_ptr<int64_t>() + values.numel()};
}

using Experts = std::vector<int64_t>;

}  // namespace

TEST_CASE("experts come from the best groups, by score plus bias, ties to the lower", "[router]") {
  const RouterSpec spec = spec_of(8, 4, 2, 3);
  const at::Tensor weight = at::zeros({8, 4});
  // Groups of two: sums 1.0, 1.2, 1.05, 0.5. Expert 0 has the best score of all and the third group.
  const at::Tensor score = at::tensor({0.9, 0.1, 0.6, 0.6, 0.5, 0.55, 0.2, 0.3}).view({1, 8}).to(at::kFloat);
  SECTION("no bias") { CHECK(sorted_row(Router(spec, weight, at::zeros({8})).choose(score), 0) == Experts{2, 3, 5}); }
  SECTION("a bias opens group 0, and does not enter the weights") {
    at::Tensor bias = at::zeros({8});
    bias[0] = 1.0;
    const Router router(spec, weight, bias);
    const at::Tensor chosen = router.choose(score);
    CHECK(sorted_row(chosen, 0) == Experts{0, 2, 3});
    const at::Tensor sorted = std::get<0>(router.weights(score, chosen).sort(-1, true));
    CHECK(distance(sorted, at::tensor({0.9, 0.6, 0.6}).view({1, 3}) * (2.5 / 2.1)) < 1e-6);
  }
  SECTION("where score plus bias is negative, closed groups stay closed") {
    CHECK(sorted_row(Router(spec, weight, at::full({8}, -2.0)).choose(score), 0) == Experts{2, 3, 5});
  }
  SECTION("ties") {
    CHECK(sorted_row(Router(spec, weight, at::zeros({8})).choose(at::full({1, 8}, 0.5)), 0) == Experts{0, 1, 2});
  }
  SECTION("one group is plain top-k") {
    CHECK(sorted_row(Router(spec_of(8, 1, 1, 3), weight, at::zeros({8})).choose(score), 0) == Experts{0, 2, 3});
  }
  SECTION("no tokens") {
    CHECK(Router(spec, weight, at::zeros({8})).choose(at::zeros({0, 8})).sizes() == at::IntArrayRef({0, 3}));
  }
}

TEST_CASE("scores are sigmoids in fp32, whatever the input", "[router]") {
  const at::Tensor x = random_normal({6, 4}, 1, at::kBFloat16), weight = random_normal({8, 4}, 2, at::kBFloat16);
  const at::Tensor score = Router(spec_of(8, 4, 2, 3), weight, at::zeros({8})).scores(x);
  CHECK(score.scalar_type() == at::kFloat);
  const at::Tensor exact = 1 / (1 + (-x.to(at::kDouble).matmul(weight.to(at::kDouble).t())).exp());
  CHECK(distance(score, exact) < 1e-6);
}

TEST_CASE("weights differ as finite differences say", "[router]") {
  for (const bool normalise : {true, false}) {
    RouterSpec spec = spec_of(8, 1, 1, 3);
    spec.normalise = normalise;
    const Router router(spec, at::zeros({8, 4}, at::kDouble), random_normal({8}, 5));
    const at::Tensor score = leaf(random_normal({5, 8}, 3).sigmoid()), chosen = router.choose(score),
                     d = random_normal({5, 3}, 4);
    const at::Tensor gradient = torch::autograd::grad({router.weights(score, chosen)}, {score}, {d})[0];
    const at::Tensor direction = random_normal({5, 8}, 6) * 1e-5;
    auto value = [&](const at::Tensor& at_score) {
      return (router.weights(at_score, chosen) * d).sum().item<double>();
    };
    const double difference = (value(score.detach() + direction) - value(score.detach() - direction)) / 2;
    CHECK(difference == Approx((gradient * direction).sum().item<double>()).epsilon(1e-7));
  }
}

TEST_CASE("the balance loss is that of the report, document by document", "[router]") {
  constexpr int64_t E = 6, K = 2;
  const std::vector<int64_t> lengths{4, 1, 7};
  const Slice slice =
      make_slices(lengths, std::vector<int64_t>(12, 0), std::vector<int64_t>(12, 0), 100, at::kCPU).at(0);
  const at::Tensor score = leaf(random_normal({12, E}, 7).sigmoid());
  // The bias and the groups take no part.
  const Router router(spec_of(E, 3, 1, K), at::zeros({E, 2}, at::kDouble), random_normal({E}, 8));

  double expected = 0.0;
  std::vector<double> d_expected(12 * E, 0.0);
  const auto s = score.accessor<double, 2>();
  int64_t begin = 0;
  for (const int64_t length : lengths) {
    std::vector<double> f(E, 0.0), p(E, 0.0);
    for (int64_t t = begin; t < begin + length; ++t) {
      double total = 0.0;
      for (int64_t i = 0; i < E; ++i) total += s[t][i];
      for (int64_t i = 0; i < E; ++i) {
        int64_t better = 0;
        for (int64_t j = 0; j < E; ++j) better += s[t][j] > s[t][i] ? 1 : 0;
        if (better < K) f[i] += static_cast<double>(E) / static_cast<double>(K * length);
        p[i] += s[t][i] / total / static_cast<double>(length);
      }
    }
    for (int64_t i = 0; i < E; ++i) expected += f[i] * p[i];
    // d/ds_tj of sum_i f_i s_ti / (sum_k s_tk) / T
    for (int64_t t = begin; t < begin + length; ++t) {
      double total = 0.0, weighted = 0.0;
      for (int64_t i = 0; i < E; ++i) total += s[t][i], weighted += f[i] * s[t][i];
      for (int64_t j = 0; j < E; ++j) {
        d_expected[t * E + j] = (f[j] / total - weighted / (total * total)) / static_cast<double>(length);
      }
    }
    begin += length;
  }
  const at::Tensor loss = router.balance_loss(score, slice);
  CHECK(loss.item<double>() == Approx(expected).epsilon(1e-12));
  CHECK(distance(torch::autograd::grad({loss}, {score})[0], at::tensor(d_expected, at::kDouble).view({12, E})) < 1e-12);
}

TEST_CASE("the bias moves towards the mean load by its rate", "[router]") {
  Router router(spec_of(4, 1, 1, 1), at::zeros({4, 2}), at::tensor({0.5, 0.5, 0.5, 0.5}).to(at::kFloat));
  router.update_bias(long_tensor({10, 0, 4, 2}), 0.25);  // mean 4
  CHECK(at::equal(router.bias(), at::tensor({0.25, 0.75, 0.5, 0.75}).to(at::kFloat)));
}
