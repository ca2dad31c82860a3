// Routed experts against a plain loop over tokens and their experts, differentiated by torch's autograd, in fp64.
#include "tests/support/catch.h"

#include <torch/csrc/autograd/autograd.h>

#include <numeric>

#include "moe/routed_experts.h"
#include "tests/support/gradients.h"
#include "tests/support/numbers.h"
#include "tests/support/stand_in_group.h"

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
  /// kJoint: gate and up one map, biases everywhere, the clamped activation; kAtInput: the weight acts on the input.
  enum class Kind { kAdapters, kTrained, kJoint, kAtInput };

  Case(Kind kind, int64_t chunk_experts, double dropout)
      : kind(kind), scratch(at::kCPU, at::kDouble), pass{scratch, counters, {5, 2, true}} {
    if (kind == Kind::kJoint) {
      spec.activation = ExpertSpec::Activation::kClampedSwiglu;
      spec.activation_limit = 0.6;
      spec.activation_alpha = 1.702;
      spec.layout = ExpertSpec::Layout::kInterleaved;
    }
    if (kind == Kind::kAtInput) spec.weight_acts = ExpertSpec::WeightActs::kInput;
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
      biases.push_back(kind == Kind::kJoint ? random_normal({E, outputs}, seed + 200) : at::Tensor());
      return std::make_unique<GroupedLinear>(std::move(frozen), std::move(adapter), GroupedBias(biases.back()));
    };
    const auto mlp = [&] {
      if (kind == Kind::kJoint) {
        auto gate_up = map("gate_up_proj", 2 * F, D, 1), down = map("down_proj", D, F, 3);
        return ExpertMlp(spec, std::move(gate_up), std::move(down));
      }
      auto gate = map("gate_proj", F, D, 1), up = map("up_proj", F, D, 2), down = map("down_proj", D, F, 3);
      return ExpertMlp(spec, std::move(gate), std::move(up), std::move(down));
    };
    ExpertMlp made = mlp();
    made.fold_adapters(chunk_experts == E);
    experts = std::make_unique<RoutedExperts>(std::move(made), ExpertPlacement{0, E, E}, chunk_experts, *exchange);
    scratch.reserve(experts->scratch_elements());
    scratch.poison_released(true);
  }

  std::vector<at::Tensor> parameter_gradients() { return taken_gradients(parameters); }

  Kind kind;
  ExpertSpec spec;
  ParameterSet parameters{at::kCPU, at::kDouble};
  std::vector<at::Tensor> weights, biases;
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
    const at::Tensor y = x.matmul(c.weights[i][e].t()) +
                         1.5 * dropped.matmul(adapter.a().working[e].t()).matmul(adapter.b().working[e].t());
    return c.biases[i].defined() ? y + c.biases[i][e] : y;
  };
  const auto expert = [&](int64_t e, const at::Tensor& x, const at::Tensor& token) {
    if (c.kind != Case::Kind::kJoint) return map(2, e, at::silu(map(0, e, x, token)) * map(1, e, x, token), token);
    const at::Tensor pairs = map(0, e, x, token).view({F, 2}), limit = at::full({F}, 0.6, at::kDouble);
    const at::Tensor g = at::minimum(pairs.select(1, 0), limit),
                     u = at::maximum(at::minimum(pairs.select(1, 1), limit), -limit);
    return map(1, e, ((u + 1) * g * (1.702 * g).sigmoid()).view({1, F}), token);
  };
  std::vector<at::Tensor> rows;
  for (int64_t t = 0; t < T; ++t) {
    const at::Tensor z = z_TD.narrow(0, t, 1), token = token_T.narrow(0, t, 1);
    at::Tensor sum = at::zeros({1, D}, at::kDouble);
    for (int64_t k = 0; k < K; ++k) {
      const int64_t e = expert_TK[t][k].item<int64_t>();
      if (e == E) continue;
      const at::Tensor& w = weight_TK[t][k];
      sum = sum + (c.kind == Case::Kind::kAtInput ? expert(e, w * z, token) : w * expert(e, z, token));
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
  using Kind = Case::Kind;
  for (const auto kind : {Kind::kAdapters, Kind::kTrained, Kind::kJoint, Kind::kAtInput}) {
    for (const int64_t chunk : {1, 2, 5, 50}) {
      const double dropout = chunk == 2 ? 0.4 : 0.0;
      INFO("kind " << static_cast<int>(kind) << ", experts a chunk " << chunk << ", dropout " << dropout);
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

TEST_CASE("of ranks that share experts the first alone adds the bias of down", "[routed_experts]") {
  for (const int rank : {0, 1}) {
    StandInGroup group(rank, 2);
    ParameterSet parameters{at::kCPU, at::kDouble};
    const auto map = [&](int64_t outputs, int64_t inputs) {
      ParameterInfo info;
      info.num_experts = E;
      return std::make_unique<GroupedLinear>(parameters.add(info, at::zeros({E, outputs, inputs}, at::kDouble)),
                                             GroupedBias(at::zeros({E, outputs}, at::kDouble)));
    };
    const auto exchange = make_local_exchange();
    const RoutedExperts experts(ExpertMlp({}, map(F, D), map(F, D), map(D, F)), {0, E, E}, E, *exchange,
                                TensorAxis(group));
    for (size_t i = 0; i < 3; ++i) CHECK(experts.linears()[i]->adds_bias() == (rank == 0 || i < 2));
  }
}
