// Biases of grouped maps, row by row; the maps themselves are compared in routed_experts_test and expert_mlp_test.
#include "tests/support/catch.h"

#include <set>

#include "lora/grouped_linear.h"
#include "tests/support/numbers.h"

using namespace moetune;

namespace {

constexpr int64_t E = 5, I = 3, O = 4;

/// Experts 1 .. 3 of five, the middle one without rows.
ExpertChunk chunk() { return {1, 3, 0, RowGroups::from_counts({2, 0, 3}, at::kCPU)}; }
const std::vector<int64_t> kExpertOfRow{1, 1, 3, 3, 3};

}  // namespace

TEST_CASE("each row gets the bias of its expert, times its weight", "[grouped_linear]") {
  const at::Tensor weight = random_normal({E, O, I}, 1), bias = random_normal({E, O}, 2), x = random_normal({5, I}, 3),
                   dy = random_normal({5, O}, 4), factor = random_normal({5, 1}, 5);
  for (const bool trained : {false, true}) {
    ParameterSet parameters{at::kCPU, at::kDouble};
    ParameterInfo info;
    info.num_experts = E;
    info.name = "map";
    Parameter& of_weight = parameters.add(info, weight);
    info.name = "map.bias";
    Parameter* of_bias = trained ? &parameters.add(info, bias) : nullptr;
    GroupedLinear map(of_weight, trained ? GroupedBias(*of_bias) : GroupedBias(bias));
    Scratch scratch(at::kCPU, at::kDouble);
    DequantCounters counters;
    const at::Tensor dense = map.dense(1, 3, scratch, counters);
    for (const bool weighted : {false, true}) {
      const at::Tensor w = weighted ? factor : at::Tensor();
      at::Tensor expected = at::empty({5, O}, at::kDouble), d_bias = at::zeros({E, O}, at::kDouble);
      for (int64_t row = 0; row < 5; ++row) {
        const double f = weighted ? factor[row].item<double>() : 1.0;
        expected[row] = weight[kExpertOfRow[row]].matmul(x[row]) + f * bias[kExpertOfRow[row]];
        d_bias[kExpertOfRow[row]] += f * dy[row];
      }
      CHECK(distance(map.forward(x, dense, chunk(), {}, {}, w), expected) < 1e-14);
      map.backward(dy, x, dense, chunk(), {}, {}, w);
      if (trained) {
        CHECK(distance(of_bias->gradient(), d_bias) < 1e-14);
        of_bias->clear_gradient();
      }
    }
    const at::Tensor products = map.bias_weight_gradient(dy, chunk(), at::kDouble);
    for (int64_t row = 0; row < 5; ++row) {
      CHECK(products[row].item<double>() == Approx(dy[row].dot(bias[kExpertOfRow[row]]).item<double>()));
    }
    CHECK(map.trains());
    map.leave_bias();
    CHECK(!map.adds_bias());
    CHECK(distance(map.forward(x.narrow(0, 0, 2), dense, {1, 1, 0, RowGroups::from_counts({2}, at::kCPU)}, {}, {}),
                   x.narrow(0, 0, 2).matmul(weight[1].t())) < 1e-14);
    map.backward(dy, x, dense, chunk(), {}, {});
    if (trained) CHECK(!of_bias->has_gradient());
  }
}

TEST_CASE("a frozen map without adapter trains where its bias does", "[grouped_linear]") {
  ParameterSet parameters{at::kCPU, at::kDouble};
  ParameterInfo info;
  info.num_experts = E;
  Parameter& bias = parameters.add(info, random_normal({E, O}, 2));
  const auto frozen = [] {
    return std::make_unique<FrozenWeight>(FrozenShape{BaseFormat::kFp32, E, O, I}, at::kCPU, at::kDouble);
  };
  CHECK(!GroupedLinear(frozen(), nullptr).trains());
  CHECK(!GroupedLinear(frozen(), nullptr, GroupedBias(random_normal({E, O}, 2))).trains());
  CHECK(GroupedLinear(frozen(), nullptr, GroupedBias(bias)).trains());
}

// The other experts' adapters with B of zero give the same numbers from code that knows nothing of some and all.
TEST_CASE("adapters of some experts alone equal those of all with zeros for the rest", "[grouped_linear]") {
  constexpr int64_t R = 2;
  const at::Tensor weight = random_normal({E, O, I}, 1), x = random_normal({5, I}, 3), dy = random_normal({5, O}, 4),
                   token = at::arange(5, at::kLong);
  const StepRandom random{17, 2, true};
  struct Stack {
    Stack(const std::vector<int64_t>& experts, const at::Tensor& weight) : parameters(at::kCPU, at::kDouble) {
      AdapterSpec spec{R, 1.5, 0.3};
      spec.experts.listed = experts;
      ParameterInfo info;
      info.name = "m.experts.*.up_proj";
      info.num_experts = E;
      auto frozen = std::make_unique<FrozenWeight>(FrozenShape{BaseFormat::kFp32, E, O, I}, at::kCPU, at::kDouble);
      for (int64_t e = 0; e < E; ++e) frozen->set(e, weight[e]);
      map = std::make_unique<GroupedLinear>(std::move(frozen),
                                            std::make_unique<Adapter>(spec, info, E, O, I, 17, parameters));
      Parameter& b = map->adapter()->b();
      for (int64_t row = 0; row < b.master().size(0); ++row) {
        const int64_t expert = b.info().expert(row);
        if (trains.count(expert) > 0) b.master()[row].copy_(random_normal({O, R}, 50 + expert));
      }
      b.refresh_working();
    }
    const std::set<int64_t> trains = {0, 3, 4};
    ParameterSet parameters;
    std::unique_ptr<GroupedLinear> map;
  };
  Stack some({0, 3, 4}, weight), all({}, weight);
  Scratch scratch(at::kCPU, at::kDouble);
  DequantCounters counters;
  // All five experts, the three in the middle, one that has no adapter.
  const std::vector<ExpertChunk> chunks = {{0, 5, 0, RowGroups::from_counts({1, 1, 0, 2, 1}, at::kCPU)},
                                           {1, 3, 0, RowGroups::from_counts({2, 0, 3}, at::kCPU)},
                                           {1, 1, 0, RowGroups::from_counts({5}, at::kCPU)},
                                           {3, 2, 0, RowGroups::from_counts({0, 5}, at::kCPU)}};
  for (const ExpertChunk& chunk : chunks) {
    INFO("experts from " << chunk.first);
    std::vector<at::Tensor> y, dx;
    for (Stack* stack : {&some, &all}) {
      const at::Tensor dense = weight.narrow(0, chunk.first, chunk.count);
      y.push_back(stack->map->forward(x, dense, chunk, token, random));
      dx.push_back(stack->map->backward(dy, x, dense, chunk, token, random));
    }
    CHECK(distance(y[0], y[1]) < 1e-14);
    CHECK(distance(dx[0], dx[1]) < 1e-14);
  }
  const at::Tensor rows = at::tensor({0, 3, 4}, at::kLong);
  for (auto parameter : {&Adapter::a, &Adapter::b}) {
    const at::Tensor expected = (all.map->adapter()->*parameter)().gradient().index_select(0, rows);
    CHECK(expected.norm().item<double>() > 0.1);
    CHECK(distance((some.map->adapter()->*parameter)().gradient(), expected) < 1e-14);
  }
}

// A stack of which all train, put together of what some train and what is held, knows nothing of some and all.
TEST_CASE("weights of some experts train among frozen ones as they do where all train", "[grouped_linear]") {
  const at::Tensor trained = random_normal({E, O, I}, 6), of_bias = random_normal({E, O}, 7);
  const std::vector<int64_t> experts = {0, 3, 4};
  const at::Tensor rows = at::tensor(experts, at::kLong);
  // Held as it is computed, which nothing may write to; and made dense.
  for (const at::ScalarType compute : {at::kFloat, at::kDouble}) {
    const double exact = compute == at::kFloat ? 1e-6 : 1e-14;
    const at::Tensor base = random_normal({E, O, I}, 1).to(at::kFloat).to(compute),
                     base_bias = random_normal({E, O}, 2).to(compute), x = random_normal({5, I}, 3).to(compute),
                     dy = random_normal({5, O}, 4).to(compute), factor = random_normal({5, 1}, 5).to(compute);
    ParameterSet parameters{at::kCPU, compute};
    const auto add = [&](const at::Tensor& initial, bool some) -> Parameter& {
      ParameterInfo info;
      info.name = "m.experts.*.up_proj";
      info.num_experts = E;
      if (some) info.hold_experts(experts);
      return parameters.add(info, some ? initial.index_select(0, rows) : initial);
    };
    auto frozen = std::make_unique<FrozenWeight>(FrozenShape{BaseFormat::kFp32, E, O, I}, at::kCPU, compute);
    for (int64_t e = 0; e < E; ++e) frozen->set(e, base[e]);
    GroupedLinear some(std::move(frozen), nullptr, GroupedBias(base_bias));
    CHECK(!some.trains());
    Parameter &weight = add(trained, true), &bias = add(of_bias, true);
    some.train({&weight, experts});
    some.train_bias({&bias, experts});
    CHECK(some.trains());
    CHECK(some.scratch_elements_per_expert() == O * I);
    const at::Tensor mixed = base.index_copy(0, rows, trained.index_select(0, rows).to(compute)),
                     mixed_bias = base_bias.index_copy(0, rows, of_bias.index_select(0, rows).to(compute));
    Parameter &all_weight = add(mixed, false), &all_bias = add(mixed_bias, false);
    GroupedLinear all(all_weight, GroupedBias(all_bias));
    Scratch scratch(at::kCPU, compute);
    scratch.reserve(10 * E * O * I);
    DequantCounters counters;
    for (const ExpertChunk& chunk :
         std::vector<ExpertChunk>{{0, 5, 0, RowGroups::from_counts({1, 1, 0, 2, 1}, at::kCPU)},
                                  {1, 3, 0, RowGroups::from_counts({2, 0, 3}, at::kCPU)},
                                  {1, 2, 0, RowGroups::from_counts({1, 4}, at::kCPU)},
                                  {3, 2, 0, RowGroups::from_counts({0, 5}, at::kCPU)}}) {
      INFO(compute << ", experts from " << chunk.first);
      CHECK(some.makes_dense(chunk.first, chunk.count) ==
            (compute == at::kDouble || chunk.count != 2 || chunk.first == 3));
      std::vector<at::Tensor> y, dx, d_factor;
      for (GroupedLinear* map : {&some, &all}) {
        const at::Tensor dense = map->dense(chunk.first, chunk.count, scratch, counters);
        y.push_back(map->forward(x, dense, chunk, {}, {}, factor));
        dx.push_back(map->backward(dy, x, dense, chunk, {}, {}, factor));
        d_factor.push_back(map->bias_weight_gradient(dy, chunk, compute));
      }
      CHECK(distance(y[0], y[1]) < exact);
      CHECK(distance(dx[0], dx[1]) < exact);
      CHECK(distance(d_factor[0], d_factor[1]) < exact);
    }
    CHECK(at::equal(some.frozen()->packed()[0].view({E, O, I}).to(compute), base));
    const at::Tensor expected = all_weight.gradient().index_select(0, rows);
    CHECK(expected.norm().item<double>() > 0.1);
    CHECK(distance(weight.gradient(), expected) < exact);
    CHECK(distance(bias.gradient(), all_bias.gradient().index_select(0, rows)) < exact);
  }
}
