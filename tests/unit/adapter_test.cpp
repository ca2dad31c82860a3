// Adapters: where they start, what their dropout depends on, and which maps get one.
#include "tests/support/catch.h"

#include "lora/adapters/adapter.h"
#include "parallel/base/error.h"
#include "tests/support/message_of.h"
#include "tests/support/numbers.h"

using namespace moetune;

namespace {

constexpr int64_t R = 4, I = 64, O = 6;

struct OneAdapter {
  OneAdapter(const std::string& name, double dropout, uint64_t seed = 17, int64_t first_expert = 0, int64_t local = 0,
             int64_t experts = 0)
      : adapter({R, 1.0, dropout}, info_of(name, first_expert, experts), local, O, I, seed, parameters) {}
  static ParameterInfo info_of(const std::string& name, int64_t first_expert, int64_t experts) {
    ParameterInfo info;
    info.name = name;
    info.first_expert = first_expert;
    info.num_experts = experts;
    return info;
  }
  ParameterSet parameters{at::kCPU, at::kFloat};
  Adapter adapter;
};

}  // namespace

TEST_CASE("A is uniform within 1/sqrt(I), B zero, both named", "[adapter]") {
  const OneAdapter one("m.q_a_proj", 0.0);
  const at::Tensor a = one.adapter.a().master();
  CHECK(one.adapter.a().name() == "m.q_a_proj.lora_A.weight");
  CHECK(one.adapter.b().name() == "m.q_a_proj.lora_B.weight");
  CHECK(one.adapter.a().info().role == Role::kAdapterA);
  CHECK(one.adapter.b().info().role == Role::kAdapterB);
  CHECK(a.abs().max().item<double>() <= 0.125);
  // The variance of uniform [-b, b) is b^2 / 3; 256 numbers give it to some 6 %.
  CHECK(a.var().item<double>() == Approx(0.125 * 0.125 / 3).epsilon(0.25));
  CHECK(one.adapter.b().master().count_nonzero().item<int64_t>() == 0);
  CHECK(!at::equal(a, OneAdapter("m.o_proj", 0.0).adapter.a().master()));
  CHECK(!at::equal(a, OneAdapter("m.q_a_proj", 0.0, 18).adapter.a().master()));
}

TEST_CASE("an expert starts alike on whatever rank it lies", "[adapter]") {
  const OneAdapter all("m.experts.*.up_proj", 0.0, 17, 0, 6, 6), part("m.experts.*.up_proj", 0.0, 17, 4, 2, 6),
      single("m.experts.5.up_proj", 0.0);
  CHECK(all.adapter.a().master().sizes() == at::IntArrayRef({6, R, I}));
  CHECK(all.adapter.b().master().sizes() == at::IntArrayRef({6, O, R}));
  CHECK(at::equal(part.adapter.a().master(), all.adapter.a().master().narrow(0, 4, 2)));
  CHECK(at::equal(all.adapter.a().master()[5], single.adapter.a().master()));
  CHECK(!at::equal(all.adapter.a().master()[5], all.adapter.a().master()[4]));
  CHECK(expert_name("m.experts.*.up_proj", 12) == "m.experts.12.up_proj");
}

TEST_CASE("a part of an adapter starts and drops as that part of the whole", "[adapter]") {
  const OneAdapter whole("m.o_proj", 0.25);
  const at::Tensor x = random_normal({40, I}, 5, at::kFloat), token = at::arange(100, 140, at::kLong);
  const StepRandom random{17, 3, true};
  for (int64_t index = 0; index < 2; ++index) {
    ParameterSet parameters(at::kCPU, at::kFloat);
    const Adapter by_inputs({R, 1.0, 0.25}, OneAdapter::info_of("m.o_proj", 0, 0), 0, O, I, 17, parameters,
                            {MatrixCut::Dim::kInputs, index, 2});
    CHECK(at::equal(by_inputs.a().master(), whole.adapter.a().master().narrow(1, index * I / 2, I / 2)));
    CHECK(by_inputs.b().master().sizes() == at::IntArrayRef({O, R}));
    CHECK(by_inputs.a().info().replicas == Replicas::kTensorIndex);
    CHECK(by_inputs.b().info().replicas == Replicas::kEverywhere);
    CHECK(by_inputs.a().info().part.whole_shape({R, I / 2}) == std::vector<int64_t>{R, I});
    CHECK(at::equal(by_inputs.a().info().part.of(whole.adapter.a().master(), {R, I / 2}), by_inputs.a().master()));
    CHECK(at::equal(by_inputs.drop(x.narrow(1, index * I / 2, I / 2), token, random),
                    whole.adapter.drop(x, token, random).narrow(1, index * I / 2, I / 2)));

    const Adapter by_outputs({R, 1.0, 0.25}, OneAdapter::info_of("m.o_proj", 0, 0), 0, O, I, 17, parameters,
                             {MatrixCut::Dim::kOutputs, index, 2});
    CHECK(at::equal(by_outputs.a().master(), whole.adapter.a().master()));
    CHECK(by_outputs.b().master().sizes() == at::IntArrayRef({O / 2, R}));
    CHECK(by_outputs.a().info().replicas == Replicas::kEverywhere);
    CHECK(by_outputs.b().info().replicas == Replicas::kTensorIndex);
    CHECK(by_outputs.b().info().part.first == index * O / 2);
    CHECK(at::equal(by_outputs.drop(x, token, random), whole.adapter.drop(x, token, random)));
  }
}

TEST_CASE("a part of a stack's adapters starts and drops as that part of the whole", "[adapter]") {
  const OneAdapter whole("m.experts.*.down_proj", 0.25, 17, 2, 3, 6);
  const at::Tensor x = random_normal({40, I}, 5, at::kFloat), token = at::arange(100, 140, at::kLong),
                   whole_a = whole.adapter.a().master();
  const StepRandom random{17, 3, true};
  ParameterInfo info = OneAdapter::info_of("m.experts.*.down_proj", 2, 6);
  info.replicas = Replicas::kExpertReplicas;
  for (int64_t index = 0; index < 2; ++index) {
    ParameterSet parameters(at::kCPU, at::kFloat);
    const Adapter by_inputs({R, 1.0, 0.25}, info, 3, O, I, 17, parameters, {MatrixCut::Dim::kInputs, index, 2});
    CHECK(at::equal(by_inputs.a().master(), whole_a.narrow(2, index * I / 2, I / 2)));
    CHECK(at::equal(by_inputs.a().info().part.of(whole_a, {3, R, I / 2}), by_inputs.a().master()));
    CHECK(at::equal(by_inputs.a().info().part.of_row().of(whole_a[1], {R, I / 2}), by_inputs.a().master()[1]));
    CHECK(by_inputs.a().info().replicas == Replicas::kExpertTensorIndex);
    CHECK(by_inputs.b().master().sizes() == at::IntArrayRef({3, O, R}));
    CHECK(by_inputs.b().info().replicas == Replicas::kExpertReplicas);
    CHECK(at::equal(by_inputs.drop(x.narrow(1, index * I / 2, I / 2), token, random),
                    whole.adapter.drop(x, token, random).narrow(1, index * I / 2, I / 2)));

    const Adapter by_outputs({R, 1.0, 0.25}, info, 3, O, I, 17, parameters, {MatrixCut::Dim::kOutputs, index, 2});
    CHECK(at::equal(by_outputs.a().master(), whole_a));
    CHECK(by_outputs.a().info().replicas == Replicas::kExpertReplicas);
    CHECK(by_outputs.b().master().sizes() == at::IntArrayRef({3, O / 2, R}));
    CHECK(by_outputs.b().info().replicas == Replicas::kExpertTensorIndex);
    CHECK(by_outputs.b().info().part.dim == 1);
    CHECK(by_outputs.b().info().part.first == index * O / 2);
  }
}

TEST_CASE("a dropout mask depends on seed, step, name, token and feature alone", "[adapter]") {
  const OneAdapter one("m.q_a_proj", 0.25), same("m.q_a_proj", 0.25, 99), other("m.o_proj", 0.25);
  const at::Tensor x = at::ones({40, I}), token = at::arange(100, 140, at::kLong);
  const StepRandom random{17, 3, true};
  const at::Tensor dropped = one.adapter.drop(x, token, random);
  CHECK(at::equal(same.adapter.drop(x, token, random), dropped));
  const at::Tensor order = at::arange(39, -1, -1, at::kLong);
  CHECK(at::equal(one.adapter.drop(x, token.index_select(0, order), random), dropped.index_select(0, order)));
  CHECK(at::equal(one.adapter.drop(x.narrow(0, 5, 3), token.narrow(0, 5, 3), random), dropped.narrow(0, 5, 3)));
  CHECK(!at::equal(other.adapter.drop(x, token, random), dropped));
  CHECK(!at::equal(one.adapter.drop(x, token + 1, random), dropped));
  CHECK(!at::equal(one.adapter.drop(x, token, {17, 4, true}), dropped));
  CHECK(!at::equal(one.adapter.drop(x, token, {18, 3, true}), dropped));
  CHECK(!at::equal(dropped.select(1, 0), dropped.select(1, 1)));

  CHECK(one.adapter.drop(x, token, {17, 3, false}).is_same(x));
  CHECK(OneAdapter("m.q_a_proj", 0.0).adapter.drop(x, token, random).is_same(x));
}

TEST_CASE("dropout zeroes its share and keeps the mean, in bf16 too", "[adapter]") {
  const at::Tensor token = at::arange(2000, at::kLong);
  const double rate = 0.1, count = 2000.0 * I;
  const OneAdapter one("m.q_a_proj", rate);
  const at::Tensor dropped = one.adapter.drop(at::ones({2000, I}), token, {17, 3, true});
  const double zeros = dropped.eq(0).sum().item<double>() / count;
  CHECK(std::abs(zeros - rate) < 5 * std::sqrt(rate * (1 - rate) / count));
  CHECK(at::equal(dropped, at::where(dropped.eq(0), at::zeros({}), at::full({}, static_cast<float>(1 / (1 - rate))))));
  // Rounded once, after the product: 0.9 / 0.9 is 1 and not 0.9 times the bf16 number next to 1/0.9.
  const at::Tensor wide = at::full({2000, I}, 0.9, at::kBFloat16);
  const at::Tensor narrow = one.adapter.drop(wide, token, {17, 3, true});
  CHECK(narrow.scalar_type() == at::kBFloat16);
  CHECK(at::equal(narrow, (wide.to(at::kFloat) * dropped).to(at::kBFloat16)));
}

TEST_CASE("targets select by group, by name, or all", "[adapter]") {
  AdapterTargets groups({{"attention", "experts"}, 8, 16.0, false, 0.1, {}});
  REQUIRE(groups.match("q_a_proj", "attention", LayerId::block(0)));
  CHECK(groups.match("q_a_proj", "attention", LayerId::block(0))->scale == 2.0);
  CHECK(groups.match("q_a_proj", "attention", LayerId::block(0))->dropout == 0.1);
  CHECK(groups.match("experts.gate_proj", "experts", LayerId::block(0)));
  CHECK(!groups.match("gate_proj", "dense_mlp", LayerId::block(0)));
  groups.require_all_matched();

  AdapterTargets names({{"gate_proj", "experts.up_proj"}, 8, 16.0, true, 0.0, {{"gate_proj", 4}}});
  CHECK(names.match("gate_proj", "dense_mlp", LayerId::block(0))->rank == 4);
  CHECK(names.match("gate_proj", "shared_expert", LayerId::block(0))->scale == 8.0);  // 16 / sqrt(4)
  CHECK(names.match("experts.up_proj", "experts", LayerId::block(0))->rank == 8);
  CHECK(names.match("experts.up_proj", "experts", LayerId::block(0))->scale == Approx(16.0 / std::sqrt(8.0)));
  CHECK(!names.match("experts.gate_proj", "experts", LayerId::block(0)));
  CHECK(!names.match("up_proj", "dense_mlp", LayerId::block(0)));

  AdapterTargets all({{"all_linear"}, 8, 16.0, false, 0.0, {}});
  CHECK(all.match("o_proj", "attention", LayerId::block(0)));
  CHECK(all.match("experts.down_proj", "experts", LayerId::block(0)));
  CHECK(!AdapterTargets().match("o_proj", "attention", LayerId::block(0)));
}

TEST_CASE("targets that match nothing are named, with the maps there are", "[adapter]") {
  AdapterTargets targets({{"q_proj", "attention", "experts"}, 8, 16.0, false, 0.0, {}});
  targets.match("q_a_proj", "attention", LayerId::block(0));
  targets.match("gate_proj", "dense_mlp", LayerId::block(0));
  targets.match("q_a_proj", "attention", LayerId::block(0));
  CHECK(message_of<UserError>([&] { targets.require_all_matched(); }) ==
        "adapter.targets: no linear map of this model matches q_proj, experts; it has q_a_proj, gate_proj");
}

TEST_CASE("adapters of some experts start as those experts do among all", "[adapter]") {
  AdapterSpec spec{R, 1.0, 0.0};
  spec.experts.listed = {1, 4, 5};
  ParameterSet parameters(at::kCPU, at::kFloat);
  const OneAdapter all("m.experts.*.up_proj", 0.0, 17, 0, 6, 6);
  // Ranks of two experts each hold none, one and two of the three.
  const std::vector<std::vector<int64_t>> held = {{1}, {}, {0, 1}};
  const std::vector<int64_t> first_rows = {0, 1, 1};
  for (int64_t rank = 0; rank < 3; ++rank) {
    const Adapter part(spec, OneAdapter::info_of("m.experts.*.up_proj", 2 * rank, 6), 2, O, I, 17, parameters);
    CHECK(part.experts() == held[rank]);
    const ParameterInfo& info = part.a().info();
    CHECK(info.num_experts == 3);
    CHECK(info.first_expert == first_rows[rank]);
    CHECK(info.experts == spec.experts.listed);
    CHECK(part.b().master().sizes() == at::IntArrayRef({static_cast<int64_t>(held[rank].size()), O, R}));
    for (size_t row = 0; row < held[rank].size(); ++row) {
      const int64_t expert = 2 * rank + held[rank][row];
      CHECK(info.expert(static_cast<int64_t>(row)) == expert);
      CHECK(at::equal(part.a().master()[static_cast<int64_t>(row)], all.adapter.a().master()[expert]));
    }
  }
  CHECK(spec.experts.count(6) == 3);
  CHECK(spec.experts.most_of_rank(6, 2) == 2);
  CHECK(AdapterSpec{R}.experts.most_of_rank(6, 2) == 2);
  AdapterSpec open{R};
  open.experts.top = 4;
  CHECK(open.experts.count(6) == 4);
  CHECK(open.experts.most_of_rank(6, 2) == 2);
}

TEST_CASE("layers narrow the targets", "[adapter]") {
  AdapterTargets targets({{"attention"}, 8, 16.0, false, 0.0, {}, {false, {{0, 0}, {2, 3}}, false}});
  const LayerId mtp = LayerId::mtp(5);
  for (int64_t layer = 0; layer < 5; ++layer) {
    INFO(layer);
    CHECK(targets.match("o_proj", "attention", LayerId::block(layer)).has_value() == (layer != 1 && layer != 4));
  }
  CHECK(!targets.match("o_proj", "attention", mtp));
  targets.require_all_matched();
  AdapterTargets of_mtp({{"attention"}, 8, 16.0, false, 0.0, {}, {false, {}, true}});
  CHECK(!of_mtp.match("o_proj", "attention", LayerId::block(0)));
  CHECK(of_mtp.match("o_proj", "attention", mtp));
  of_mtp.require_all_matched();
}

TEST_CASE("layers and experts that match nothing are named", "[adapter]") {
  const auto refusal = [](const LayerChoice& layers, const ExpertChoice& experts) {
    AdapterTargets targets({{"experts"}, 8, 16.0, false, 0.0, {}, layers, experts});
    targets.match("gate_proj", "dense_mlp", LayerId::block(0));
    targets.match("experts.up_proj", "experts", LayerId::block(1), 4);
    return message_of<UserError>([&] { targets.require_all_matched(); });
  };
  using Kind = ExpertChoice::Kind;
  const std::string kNothing = message_of<UserError>([] {});
  CHECK(refusal({}, {}) == kNothing);
  CHECK(refusal({false, {{0, 0}, {1, 1}, {7, 9}}, false}, {}) ==
        "adapter.layers: no linear map that adapter.targets names lies in 0, 7-9; the model has layers 0 to 1");
  CHECK(
      refusal({false, {{1, 1}}, true}, {}) ==
      "adapter.layers: no linear map that adapter.targets names lies in mtp; the model has layers 0 to 1, and the MTP "
      "module takes part where mtp.loss_weight is above 0");
  CHECK(refusal({}, {Kind::kListed, {{0, 3}}, 0}) == kNothing);
  CHECK(refusal({}, {Kind::kListed, {{0, 0}, {2, 4}}, 0}) ==
        "adapter.experts: 2-4 is more than there is; a layer of the model has experts 0 to 3");
  CHECK(refusal({}, {Kind::kTop, {}, 5}) ==
        "adapter.experts: top 5 is more than there is; a layer of the model has experts 0 to 3");
  AdapterTargets dense({{"dense_mlp"}, 8, 16.0, false, 0.0, {}, {}, {Kind::kTop, {}, 2}});
  CHECK(!dense.match("experts.up_proj", "experts", LayerId::block(1), 4));
  CHECK(dense.match("gate_proj", "dense_mlp", LayerId::block(0)));
  CHECK(message_of<UserError>([&] { dense.require_all_matched(); }) ==
        "adapter.experts: adapter.targets names no map of routed experts; add the target experts");
}

TEST_CASE("the greatest loads, of equal ones the lower number", "[adapter]") {
  CHECK(greatest_loads({3, 9, 0, 3, 7}, 3) == std::vector<int64_t>{0, 1, 4});
  CHECK(greatest_loads({0, 0, 0}, 2) == std::vector<int64_t>{0, 1});
  CHECK(ExpertChoice{ExpertChoice::Kind::kListed, {{5, 7}, {1, 1}}, 0}.listed() == std::vector<int64_t>{1, 5, 6, 7});
}
