// Balance losses of a step in two ranks' parts, several slices with padding and two layers, against plain loops over
// tokens and experts. With loads held fixed each loss is linear in the probabilities, so that the loops, given a single
// probability of 1, are its derivative too.
#include "tests/support/catch.h"

#include <torch/csrc/autograd/autograd.h>

#include <algorithm>

#include "moe/balance.h"
#include "moe/router.h"
#include "parallel/base/choice.h"
#include "parallel/base/error.h"
#include "tests/support/message_of.h"
#include "tests/support/numbers.h"

using namespace moetune;

namespace {

constexpr int64_t E = 6, K = 2, D = 3, M = 2, L = 2;

RouterSpec router_spec(RouterSpec::Scores scores = RouterSpec::Scores::kSoftmax,
                       RouterSpec::Choice choice = RouterSpec::Choice::kGroupsByMax) {
  RouterSpec spec;
  spec.experts = E;
  spec.top_k = K;
  spec.scores = scores;
  spec.choice = choice;
  spec.num_groups = D;
  spec.top_groups = M;
  return spec;
}

/// Rows of one slice in all layers.
struct Rows {
  Slice slice;
  std::vector<at::Tensor> score, probability, expert;  ///< by layer
};

/// Documents of these lengths and `padding` rows behind them; the last expert gets nothing.
Rows rows_of(const std::vector<int64_t>& lengths, int64_t padding, const RouterSpec& spec, uint64_t seed) {
  Rows rows;
  std::vector<int64_t> document;
  for (size_t d = 0; d < lengths.size(); ++d) document.insert(document.end(), lengths[d], static_cast<int64_t>(d));
  document.insert(document.end(), padding, static_cast<int64_t>(lengths.size()));
  rows.slice.num_rows = static_cast<int64_t>(document.size());
  rows.slice.num_padding = padding;
  rows.slice.num_documents = static_cast<int64_t>(lengths.size());
  rows.slice.document_T = long_tensor(document);
  rows.slice.document_length = long_tensor(lengths);
  at::Tensor away = at::zeros({E}, at::kDouble);
  away[E - 1] = -50.0;
  at::Tensor correction;
  if (spec.correction_bias) correction = random_normal({E}, 99);
  const Router router(spec, {at::eye(E, at::kDouble), correction, {}, nullptr});
  for (int64_t l = 0; l < L; ++l) {
    const at::Tensor score = router.scores(random_normal({rows.slice.num_rows, E}, seed + l) + away).detach();
    rows.score.push_back(leaf(score));
    rows.probability.push_back(leaf(router.probabilities(score)));
    rows.expert.push_back(router.choose(score));
    rows.expert.back().narrow(0, rows.slice.num_rows - padding, padding).fill_(E);
  }
  return rows;
}

using Slices = std::vector<Rows>;

struct Step {
  std::vector<Slices> ranks;
  int64_t documents = 0, tokens = 0;
};

Step step_of(const RouterSpec& spec) {
  Step step;
  step.ranks = {{rows_of({4, 1}, 0, spec, 10), rows_of({7}, 2, spec, 20)},
                {rows_of({}, 1, spec, 30), rows_of({3, 2}, 0, spec, 40)}};
  step.documents = 5;
  step.tokens = 17;
  return step;
}

/// The loss with the step's own loads, at other probabilities: p(rank, slice, layer) [T, E].
using Probabilities = std::function<const at::Tensor&(size_t, size_t, int64_t)>;

double slow_loss(BalanceKind kind, const Step& step, const Probabilities& p) {
  double total = 0.0, pooled_n[E] = {}, pooled_p[E] = {};
  const double T = static_cast<double>(step.tokens);
  for (int64_t l = 0; l < L; ++l) {
    double n[E] = {}, p_sum[E] = {}, sent[D] = {};
    for (size_t r = 0; r < step.ranks.size(); ++r) {
      for (size_t s = 0; s < step.ranks[r].size(); ++s) {
        const Rows& rows = step.ranks[r][s];
        const auto p_TE = p(r, s, l).accessor<double, 2>();
        const auto score_TE = rows.score[l].accessor<double, 2>();
        const auto expert_TK = rows.expert[l].accessor<int64_t, 2>();
        const auto document_T = rows.slice.document_T.accessor<int64_t, 1>();
        for (int64_t d = 0; d < rows.slice.num_documents; ++d) {  // sequence
          const double length = static_cast<double>(rows.slice.document_length[d].item<int64_t>());
          double f[E] = {}, mean[E] = {};
          for (int64_t t = 0; t < rows.slice.num_rows; ++t) {
            if (document_T[t] != d) continue;
            for (int64_t i = 0; i < E; ++i) {
              int64_t better = 0;
              for (int64_t j = 0; j < E; ++j) better += score_TE[t][j] > score_TE[t][i] ? 1 : 0;
              if (better < K) f[i] += E / (K * length);
              mean[i] += p_TE[t][i] / length;
            }
          }
          for (int64_t i = 0; i < E && kind == BalanceKind::kSequence; ++i)
            total += f[i] * mean[i] / static_cast<double>(step.documents);
        }
        for (int64_t t = 0; t < rows.slice.num_rows - rows.slice.num_padding; ++t) {
          bool reaches[D] = {};
          for (int64_t k = 0; k < K; ++k) {
            n[expert_TK[t][k]] += 1;
            reaches[expert_TK[t][k] / (E / D)] = true;
          }
          for (int64_t d = 0; d < D; ++d) sent[d] += reaches[d] ? 1 : 0;
          for (int64_t i = 0; i < E; ++i) p_sum[i] += p_TE[t][i];
        }
      }
    }
    for (int64_t i = 0; i < E; ++i) {
      pooled_n[i] += n[i];
      pooled_p[i] += p_sum[i];
      if (kind == BalanceKind::kSwitch) total += E * (n[i] / T) * (p_sum[i] / T);
    }
    if (kind == BalanceKind::kDeepseekV2) {
      for (int64_t d = 0; d < D; ++d) {
        double f_mean = 0.0, p_device = 0.0;
        for (int64_t i = d * (E / D); i < (d + 1) * (E / D); ++i) {
          const double f = E / (K * T) * n[i];
          total += 0.003 * f * p_sum[i] / T;
          f_mean += f / (E / D);
          p_device += p_sum[i] / T;
        }
        total += 0.05 * f_mean * p_device + 0.02 * (D / (M * T) * sent[d]) * p_device;
      }
    }
  }
  if (kind == BalanceKind::kPooled) {
    for (int64_t i = 0; i < E; ++i) total += E * (pooled_n[i] / (L * T)) * (pooled_p[i] / (L * T));
  }
  return total;
}

/// Both ranks' balances, counted and closed with the sums over both.
std::vector<StepBalance> counted(const BalanceSpec& balance, const RouterSpec& spec, const Step& step) {
  std::vector<at::Tensor> counts;
  std::vector<StepBalance> result;
  for (const bool really : {false, true}) {
    result.clear();
    for (size_t r = 0; r < step.ranks.size(); ++r) {
      StepBalance& b = result.emplace_back(balance, spec, BalanceTotals{step.documents, step.tokens});
      for (int64_t l = 0; l < L; ++l) {
        for (const Rows& rows : step.ranks[r]) {
          b.count(10 * l, rows.score[l], rows.probability[l], rows.expert[l], rows.slice);
        }
      }
      b.close([&](const at::Tensor& sum) {
        if (really) sum.copy_(counts[0] + counts[1]);
        else counts.push_back(sum.clone());
      });
    }
  }
  return result;
}

}  // namespace

TEST_CASE("balance losses and their gradients are those of plain loops", "[balance]") {
  for (const auto kind :
       {BalanceKind::kSequence, BalanceKind::kSwitch, BalanceKind::kPooled, BalanceKind::kDeepseekV2}) {
    RouterSpec spec = router_spec();
    if (kind == BalanceKind::kSequence) {  // the bias and the groups take no part
      spec = router_spec(RouterSpec::Scores::kSigmoid, RouterSpec::Choice::kGroupsByBestTwo);
      spec.correction_bias = true;
    }
    if (kind == BalanceKind::kPooled)
      spec = router_spec(RouterSpec::Scores::kSoftmaxOfChosen, RouterSpec::Choice::kGreedy);
    INFO(to_string(kind));
    const Step step = step_of(spec);
    const double weight = 0.7;
    const std::vector<StepBalance> balances = counted({kind, weight}, spec, step);
    const Probabilities own = [&](size_t r, size_t s, int64_t l) -> const at::Tensor& {
      return step.ranks[r][s].probability[l];
    };
    const double loss = balances[0].loss().item<double>() + balances[1].loss().item<double>();
    CHECK(loss == Approx(weight * slow_loss(kind, step, own)).epsilon(1e-12));
    for (size_t r = 0; r < 2; ++r) {
      for (size_t s = 0; s < 2; ++s) {
        for (int64_t l = 0; l < L; ++l) {
          const at::Tensor got = balances[r].gradient(10 * l, s, step.ranks[r][s].slice);
          at::Tensor wanted = at::zeros_like(got);
          for (int64_t t = 0; t < got.size(0); ++t) {
            for (int64_t i = 0; i < E; ++i) {
              std::vector<std::vector<std::vector<at::Tensor>>> unit(2);
              for (size_t a = 0; a < 2; ++a) {
                for (const Rows& rows : step.ranks[a]) {
                  unit[a].emplace_back(L, at::zeros({rows.slice.num_rows, E}, at::kDouble));
                }
              }
              unit[r][s][l] = unit[r][s][l].clone();
              unit[r][s][l][t][i] = 1.0;
              wanted[t][i] = weight * slow_loss(kind, step, [&](size_t a, size_t b, int64_t c) -> const at::Tensor& {
                               return unit[a][b][c];
                             });
            }
          }
          CHECK(distance(got, wanted) < 1e-13);
          const int64_t padding = step.ranks[r][s].slice.num_padding;
          CHECK(got.narrow(0, got.size(0) - padding, padding).count_nonzero().item<int64_t>() == 0);
        }
      }
    }
  }
}

TEST_CASE("an even load gives the balance losses' own units", "[balance]") {
  // K tokens to each expert, even probabilities: sequence 1, switch and pooled K, deepseek_v2 0.003 + 0.05 +
  // 0.02 D' / M with D' devices reached by a token.
  RouterSpec spec = router_spec();
  Rows rows = rows_of({E}, 0, spec, 1);
  const at::Tensor even = at::full({E, E}, 1.0 / E, at::kDouble);
  std::vector<int64_t> expert;
  for (int64_t t = 0; t < E; ++t) expert.insert(expert.end(), {t, (t + 2) % E});
  const auto loss = [&](BalanceKind kind) {
    StepBalance balance({kind, 1.0}, spec, {1, E});
    balance.count(0, even, even, long_tensor(expert).view({E, K}), rows.slice);
    balance.close([](const at::Tensor&) {});
    return balance.loss().item<double>();
  };
  CHECK(loss(BalanceKind::kSequence) == Approx(1.0));
  CHECK(loss(BalanceKind::kSwitch) == Approx(K));
  CHECK(loss(BalanceKind::kPooled) == Approx(K));
  CHECK(loss(BalanceKind::kDeepseekV2) == Approx(0.003 + 0.05 + 0.02 * 2 / M));
}

TEST_CASE("a step without tokens has no balance loss", "[balance]") {
  for (const auto kind :
       {BalanceKind::kSequence, BalanceKind::kSwitch, BalanceKind::kPooled, BalanceKind::kDeepseekV2}) {
    StepBalance balance({kind, 1.0}, router_spec(), {0, 0});
    const Rows rows = rows_of({}, 0, router_spec(), 1);
    balance.count(3, rows.score[0], rows.probability[0], rows.expert[0], rows.slice);
    balance.close([](const at::Tensor&) {});
    CHECK(balance.loss().item<double>() == 0.0);
    CHECK(balance.gradient(3, 0, rows.slice).sizes() == at::IntArrayRef({0, E}));
  }
}

TEST_CASE("the recipe's kind of balance is the family's own, or refused", "[balance]") {
  using Scores = RouterSpec::Scores;
  using Choice = RouterSpec::Choice;
  const RouterSpec v3 = router_spec(Scores::kSigmoid, Choice::kGroupsByBestTwo), v2 = router_spec(),
                   mixtral = router_spec(Scores::kSoftmax, Choice::kGreedy),
                   gpt_oss = router_spec(Scores::kSoftmaxOfChosen, Choice::kGreedy);
  CHECK(balance_of(BalanceKind::kAuto, {}, v3) == BalanceSpec{BalanceKind::kSequence, 1e-4});
  CHECK(balance_of(BalanceKind::kAuto, {}, v2) == BalanceSpec{BalanceKind::kDeepseekV2, 1.0});
  CHECK(balance_of(BalanceKind::kAuto, 0.3, mixtral) == BalanceSpec{BalanceKind::kSwitch, 0.3});
  CHECK(balance_of(BalanceKind::kAuto, {}, gpt_oss) == BalanceSpec{BalanceKind::kSwitch, 0.01});
  RouterSpec v2_lite = mixtral;
  v2_lite.balance = BalanceKind::kDeepseekV2;
  CHECK(balance_of(BalanceKind::kAuto, {}, v2_lite).kind == BalanceKind::kDeepseekV2);
  CHECK(!balance_of(BalanceKind::kNone, {}, v3).is_on());
  CHECK(!balance_of(BalanceKind::kNone, 0.0, v3).is_on());
  CHECK(
      contains(message_of<UserError>([&] { balance_of(BalanceKind::kNone, 0.1, v3); }), "router.balance.kind is none"));
  for (const RouterSpec& other : {v3, gpt_oss}) {
    CHECK(contains(message_of<UserError>([&] { balance_of(BalanceKind::kDeepseekV2, {}, other); }),
                   "use sequence, switch or pooled"));
  }
}
