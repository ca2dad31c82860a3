// Routed experts against a plain loop over tokens and their experts, differentiated by torch's autograd, in fp64.
#include "tests/support/catch.h"

#include <torch/csrc/autograd/autograd.h>

#include <numeric>

#include "moe/routed_experts.h"
#include "tests/support/numbers.h"

using namespace moetune;

namespace {

constexpr int64_t T = 13, D = 8, F = 6, E = 5, K = 3;
constexpr int64_t kEmptyExpert = 3, kPaddingRow = 4;

/// K different experts of each token; unequal loads, none for kEmptyExpert; a row of padding, which goes nowhere.
at::Tensor choice() {
  std::vector<int64_t> experts;
  const int64_t used[] = {0, 1, 2, 4};
  for (int64_t t = 0; t < T; ++t) {
    for (int64_t k = 0; k < K; ++k) experts.push_back(used[(t * t + k * (t % 2 == 0 ? 1 : 3)) % 4]);
  }
  std::fill_n(experts.begin() + kPaddingRow * K, K, E);
  return long_tensor(experts).view({T, K});
}

struct Case {
  enum class Kind { kAdapters, kTrained };

  Case(Kind kind, int64_t chunk_experts, double dropout)
      : scratch(at::kCPU, at::kDouble), pass{scratch, counters, {5, 2, true}} {
    auto map = [&](const std::string& leaf_name, int64_t outputs, int64_t inputs, uint64_t seed) {
      // Rounded to fp32, as the weight is held.
      const at::Tensor weight = random_normal({E, outputs, inputs}, seed, at::kFloat).to(at::kDouble) * 0.5;
      ParameterInfo info;
      info.name = "layers.0.experts.*." + leaf_name;
      info.num_experts = E;
      if (kind == Kind::kTrained) {
        Parameter& parameter = parameters.add(info, weight);
        trained.push_back(&parameter);
        return std::make_unique<GroupedLinear>(parameter);
      }
      weights.push_back(weight);
      auto frozen =
          std::make_unique<FrozenWeight>(FrozenShape{BaseFormat::kFp32, E, outputs, inputs}, at::kCPU, at::kDouble);
      for (int64_t e = 0; e < E; ++e) frozen->set(e, weight[e]);
      auto adapter = std::make_unique<Adapter>(AdapterSpec{2, 1.5, dropout}, info, E, outputs, inputs, 1, parameters);
      adapter->b().master().copy_(random_normal({E, outputs, 2}, seed + 100));
      adapter->b().refresh_working();
      adapters.push_back(adapter.get());
      return std::make_unique<GroupedLinear>(std::move(frozen), std::move(adapter));
    };
    auto gate = map("gate_proj", F, D, 1), up = map("up_proj", F, D, 2), down = map("down_proj", D, F, 3);
    experts = std::make_unique<RoutedExperts>(std::move(gate), std::move(up), std::move(down), ExpertPlacement{0, E, E},
                                              chunk_experts, *exchange);
    scratch.reserve(experts->scratch_elements());
    scratch.poison_released(true);
  }

  std::vector<at::Tensor> parameter_gradients() {
    std::vector<at::Tensor> found;
    for (Parameter& parameter : parameters.all()) {
      found.push_back(parameter.gradient().clone());
      parameter.clear_gradient();
    }
    return found;
  }

  ParameterSet parameters{at::kCPU, at::kDouble};
  std::vector<at::Tensor> weights;
  std::vector<Adapter*> adapters;
  std::vector<Parameter*> trained;
  std::unique_ptr<TokenExchange> exchange = make_local_exchange();
  Scratch scratch;
  DequantCounters counters;
  PassContext pass;
  std::unique_ptr<RoutedExperts> experts;
};

/// The routed sum of every token, one expert at a time.
at::Tensor plain_sum(const Case& c, const at::Tensor& z_TD, const at::Tensor& weight_TK, const at::Tensor& expert_TK,
                     const at::Tensor& token_T) {
  auto map = [&](size_t i, int64_t e, const at::Tensor& x, const at::Tensor& token) {
    if (!c.trained.empty()) return x.matmul(c.trained[i]->working[e].t());
    const Adapter& adapter = *c.adapters[i];
    const at::Tensor dropped = adapter.drop(x, token, c.pass.random);
    return x.matmul(c.weights[i][e].t()) +
           1.5 * dropped.matmul(adapter.a().working[e].t()).matmul(adapter.b().working[e].t());
  };
  std::vector<at::Tensor> rows;
  for (int64_t t = 0; t < T; ++t) {
    const at::Tensor z = z_TD.narrow(0, t, 1), token = token_T.narrow(0, t, 1);
    at::Tensor sum = at::zeros({1, D}, at::kDouble);
    for (int64_t k = 0; k < K; ++k) {
      const int64_t e = expert_TK[t][k].item<int64_t>();
      if (e == E) continue;
      sum = sum + weight_TK[t][k] * map(2, e, at::silu(map(0, e, z, token)) * map(1, e, z, token), token);
    }
    rows.push_back(sum);
  }
  return at::cat(rows);
}

}  // namespace

TEST_CASE("routed experts equal a loop over tokens, forward and backward", "[routed_experts]") {
  const at::Tensor z_TD = leaf(random_normal({T, D}, 10)), weight_TK = leaf(random_normal({T, K}, 11).abs());
  const at::Tensor expert_TK = choice(), token_T = at::arange(100, 100 + T, at::kLong),
                   d_TD = random_normal({T, D}, 12);
  for (const auto kind : {Case::Kind::kAdapters, Case::Kind::kTrained}) {
    for (const int64_t chunk : {1, 2, 5, 50}) {
      const double dropout = chunk == 2 ? 0.4 : 0.0;
      INFO("trained " << (kind == Case::Kind::kTrained) << ", experts a chunk " << chunk << ", dropout " << dropout);
      Case c(kind, chunk, dropout);
      const RoutingRecord record = c.experts->route(expert_TK);
      const std::vector<int64_t>& loads = record.rounds.at(0).rows_of_expert;
      CHECK(loads.at(kEmptyExpert) == 0);
      CHECK(std::accumulate(loads.begin(), loads.end(), int64_t{0}) == (T - 1) * K);
      const RoutedInputs way_down{z_TD.detach(), weight_TK.detach(), token_T, {}},
          way_up{z_TD.detach(), weight_TK.detach(), token_T, d_TD};

      const at::Tensor expected = plain_sum(c, z_TD, weight_TK, expert_TK, token_T);
      KeptExperts kept;
      const at::Tensor routed = c.experts->forward(record, c.experts->send(record, way_down, c.pass), c.pass, &kept);
      CHECK(distance(routed, expected) < 1e-13);
      CHECK(!routed.requires_grad());

      std::vector<at::Tensor> inputs{z_TD, weight_TK};
      for (Parameter& parameter : c.parameters.all()) inputs.push_back(parameter.working);
      const auto wanted = torch::autograd::grad({expected}, inputs, {d_TD});
      const ExpertGradients got = c.experts->backward(record, c.experts->send(record, way_up, c.pass), c.pass);
      const std::vector<at::Tensor> gradients = c.parameter_gradients();
      CHECK(distance(got.d_z_TD, wanted[0]) < 1e-13);
      CHECK(distance(got.d_weight_TK, wanted[1]) < 1e-13);
      for (size_t i = 0; i < gradients.size(); ++i) {
        CHECK(distance(gradients[i], wanted[2 + i]) < 1e-13);
        CHECK(gradients[i][kEmptyExpert].count_nonzero().item<int64_t>() == 0);
      }

      const ExpertGradients again =
          c.experts->backward(record, c.experts->send(record, way_up, c.pass, &kept), c.pass, &kept);
      const std::vector<at::Tensor> kept_gradients = c.parameter_gradients();
      CHECK(at::equal(again.d_z_TD, got.d_z_TD));
      CHECK(at::equal(again.d_weight_TK, got.d_weight_TK));
      for (size_t i = 0; i < gradients.size(); ++i) CHECK(at::equal(kept_gradients[i], gradients[i]));
    }
  }
}

TEST_CASE("each expert is made dense once a way, whatever the rows", "[routed_experts]") {
  for (const int64_t rows : {int64_t{0}, T}) {
    Case c(Case::Kind::kAdapters, 2, 0.0);
    const RoutingRecord record = c.experts->route(choice().narrow(0, 0, rows));
    const at::Tensor z = random_normal({rows, D}, 10), weight = random_normal({rows, K}, 11),
                     token = at::arange(rows, at::kLong);
    const at::Tensor routed =
        c.experts->forward(record, c.experts->send(record, {z, weight, token, {}}, c.pass), c.pass);
    CHECK(routed.sizes() == at::IntArrayRef({rows, D}));
    CHECK(c.counters.elements == E * 3 * D * F);
    const ExpertGradients got =
        c.experts->backward(record, c.experts->send(record, {z, weight, token, routed}, c.pass), c.pass);
    CHECK(got.d_weight_TK.sizes() == at::IntArrayRef({rows, K}));
    CHECK(c.counters.elements == 2 * E * 3 * D * F);
  }
}
