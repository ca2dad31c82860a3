// Grouped maps of the same rows as one against each of them alone, in fp64.
#include "lora/grouped_maps.h"

#include "tests/support/catch.h"
#include "tests/support/gradients.h"
#include "tests/support/numbers.h"

using namespace moetune;

namespace {

constexpr int64_t E = 4, I = 8, X = 6, kRank = 2;
const std::vector<int64_t> kOutputs{5, 3};
const std::vector<int64_t> kRows{2, 0, 4};  // of experts 1 .. 3

/// How the weights lie: dequantised into the scratch, held dense as neighbours or apart, or trained.
enum class Held { kScratch, kNeighbours, kApart, kTrained };

struct Stack {
  Stack(Held held, const std::vector<int64_t>& ranks, bool biased, double dropout = 0.3)
      : compute(held == Held::kNeighbours || held == Held::kApart ? at::kFloat : at::kDouble),
        parameters(at::kCPU, compute) {
    const int64_t unit = (kOutputs[0] + kOutputs[1]) * I * 4 + 16;  // two parts, each to 16 bytes
    const at::Tensor bytes = at::zeros({E * unit}, at::kByte);
    for (size_t i = 0; i < kOutputs.size(); ++i) {
      const at::Tensor weight = random_normal({E, kOutputs[i], I}, 1 + i, at::kFloat);
      ParameterInfo info;
      info.name = "experts.*.map" + std::to_string(i);
      info.num_experts = E;
      GroupedBias bias;
      if (biased) {
        ParameterInfo of_bias = info;
        of_bias.name += ".bias";
        bias = GroupedBias(parameters.add(of_bias, random_normal({E, kOutputs[i]}, 40 + i)));
      }
      if (held == Held::kTrained) {
        maps.push_back(std::make_unique<GroupedLinear>(parameters.add(info, weight), bias));
        continue;
      }
      auto frozen =
          std::make_unique<FrozenWeight>(FrozenShape{BaseFormat::kFp32, E, kOutputs[i], I}, at::kCPU, compute);
      if (held == Held::kNeighbours) frozen->bind(bytes, i == 0 ? 0 : kOutputs[0] * I * 4, unit);
      for (int64_t e = 0; e < E; ++e) frozen->set(e, weight[e]);
      std::unique_ptr<Adapter> adapter;
      if (ranks.at(i) > 0) {
        const AdapterSpec spec{ranks[i], 1.5 + static_cast<double>(i), dropout};
        adapter = std::make_unique<Adapter>(spec, info, E, kOutputs[i], I, 1, parameters);
        adapter->b().master().copy_(random_normal({E, kOutputs[i], ranks[i]}, 20 + i));
        adapter->b().refresh_working();
      }
      maps.push_back(std::make_unique<GroupedLinear>(std::move(frozen), std::move(adapter), bias));
    }
  }
  at::ScalarType compute;
  ParameterSet parameters;
  std::vector<std::unique_ptr<GroupedLinear>> maps;
};

}  // namespace

TEST_CASE("maps of the same rows as one equal each alone", "[grouped_maps]") {
  const ExpertChunk chunk{1, 3, 0, RowGroups::from_counts(kRows, at::kCPU)};
  const StepRandom random{3, 1, true};
  const at::Tensor token = at::arange(X, at::kLong);
  for (const auto held : {Held::kScratch, Held::kNeighbours, Held::kApart, Held::kTrained}) {
    for (const bool adapted : {false, true}) {
      for (const bool biased : {false, true}) {
        if (held == Held::kTrained && adapted) continue;
        INFO("held " << static_cast<int>(held) << ", adapted " << adapted << ", biased " << biased);
        const std::vector<int64_t> ranks(2, adapted ? kRank : 0);
        Stack one(held, ranks, biased), other(held, ranks, biased);
        const double bound = one.compute == at::kDouble ? 1e-14 : 1e-6;
        const at::Tensor x = random_normal({X, I}, 5).to(one.compute), w = random_normal({X, 1}, 6).to(one.compute),
                         dy = random_normal({X, kOutputs[0] + kOutputs[1]}, 7).to(one.compute);
        GroupedMaps maps({one.maps[0].get(), one.maps[1].get()});
        CHECK(maps.spare({}) == 0);
        Scratch scratch(at::kCPU, one.compute);
        scratch.reserve(8 * E * maps.scratch_elements_per_expert());
        DequantCounters counters;
        const GroupedMaps::Dense dense = maps.dense(chunk, random, scratch, counters);
        // What can be one product is one.
        CHECK(dense.all_eOI.defined() == (held == Held::kScratch || held == Held::kNeighbours));
        const at::Tensor y = maps.forward(x, dense, chunk, token, random, w);
        const GroupedMaps::InputGradient d = maps.input_gradient(dy, dense, chunk, token, random);
        CHECK(maps.needs_input() == (adapted || held == Held::kTrained));
        maps.add_gradients(dy, maps.needs_input() ? x : at::Tensor(), d, dense, chunk, token, random, w);

        at::Tensor dx = at::zeros_like(x);
        int64_t first = 0;
        for (size_t i = 0; i < other.maps.size(); ++i) {
          GroupedLinear& map = *other.maps[i];
          const at::Tensor own = map.dense(1, 3, scratch, counters), own_dy = dy.narrow(1, first, kOutputs[i]);
          CHECK(distance(y.narrow(1, first, kOutputs[i]), map.forward(x, own, chunk, token, random, w)) < bound);
          dx += map.backward(own_dy, x, own, chunk, token, random, w);
          first += kOutputs[i];
        }
        CHECK(distance(d.dx_XI, dx) < bound);
        const auto got = taken_gradients(one.parameters), expected = taken_gradients(other.parameters);
        for (size_t i = 0; i < expected.size(); ++i) CHECK(distance(got[i], expected[i]) < bound);
        if (held == Held::kScratch) CHECK(counters.elements == 2 * 3 * (kOutputs[0] + kOutputs[1]) * I);
      }
    }
  }
}

TEST_CASE("folded adapters equal those that add their part", "[grouped_maps]") {
  const ExpertChunk chunk{1, 3, 0, RowGroups::from_counts(kRows, at::kCPU)};
  const at::Tensor token = at::arange(X, at::kLong);
  // Of both maps, with ranks of their own, of either, and under dropout, where nothing is folded.
  for (const std::vector<int64_t>& ranks : {std::vector<int64_t>{2, 3}, {3, 0}, {0, 2}}) {
    for (const bool drops : {false, true}) {
      for (const bool biased : {false, true}) {
        INFO("ranks " << ranks[0] << " and " << ranks[1] << ", drops " << drops << ", biased " << biased);
        const StepRandom random{3, 1, drops};
        Stack one(Held::kScratch, ranks, biased), other(Held::kScratch, ranks, biased);
        GroupedMaps folded({one.maps[0].get(), one.maps[1].get()}), plain({other.maps[0].get(), other.maps[1].get()});
        folded.fold(true);
        // Each adapter has a multiple of eight columns.
        const int64_t O = kOutputs[0] + kOutputs[1], R = (ranks[0] > 0 ? 8 : 0) + (ranks[1] > 0 ? 8 : 0);
        CHECK(folded.scratch_elements_per_expert() == (O + R) * (I + R));
        CHECK(plain.scratch_elements_per_expert() == O * I);
        CHECK(folded.spare(random) == (drops ? 0 : R));
        Scratch scratch(at::kCPU, at::kDouble);
        scratch.reserve(2 * E * folded.scratch_elements_per_expert());
        scratch.poison_released(true);
        scratch.take({2 * E * folded.scratch_elements_per_expert()});
        scratch.reset();
        DequantCounters counters;
        const GroupedMaps::Dense dense = folded.dense(chunk, random, scratch, counters),
                                 other_dense = plain.dense(chunk, random, scratch, counters);
        CHECK(dense.folded_eOI.defined() == !drops);
        CHECK(at::equal(dense.all_eOI, other_dense.all_eOI));
        CHECK(counters.elements == 2 * 3 * O * I);
        const at::Tensor x = random_normal({X, I}, 5), dy = random_normal({X, O}, 7), w = random_normal({X, 1}, 6);
        const auto with_spare = [&](const at::Tensor& rows) {
          at::Tensor wide = at::full({X, rows.size(1) + folded.spare(random)}, NAN, at::kDouble);
          wide.narrow(1, 0, rows.size(1)).copy_(rows);
          return wide;
        };
        const at::Tensor expected_y = plain.forward(x, other_dense, chunk, token, random, w);
        const auto expected = plain.input_gradient(dy, other_dense, chunk, token, random);
        plain.add_gradients(dy, x, expected, other_dense, chunk, token, random, w);
        const auto expected_gradients = taken_gradients(other.parameters);
        for (const bool spare : {false, true}) {
          for (const bool has_low : {false, true}) {
            const at::Tensor own_x = spare ? with_spare(x) : x, own_dy = spare ? with_spare(dy) : dy;
            CHECK(distance(folded.forward(own_x, dense, chunk, token, random, w), expected_y) < 1e-14);
            const auto d = folded.input_gradient(own_dy, dense, chunk, token, random);
            CHECK(distance(d.dx_XI, expected.dx_XI) < 1e-14);
            folded.add_gradients(own_dy, has_low || !spare ? own_x : with_spare(x), d, dense, chunk, token, random, w,
                                 has_low);
            const auto got = taken_gradients(one.parameters);
            for (size_t i = 0; i < got.size(); ++i) CHECK(distance(got[i], expected_gradients[i]) < 1e-13);
          }
        }
      }
    }
  }
}

TEST_CASE("adapters of some experts are not folded", "[grouped_maps]") {
  ParameterSet parameters(at::kCPU, at::kDouble);
  ParameterInfo info;
  info.name = "experts.*.map";
  info.num_experts = E;
  auto frozen = std::make_unique<FrozenWeight>(FrozenShape{BaseFormat::kFp32, E, 4, I}, at::kCPU, at::kDouble);
  AdapterSpec spec{kRank, 1.5, 0.0};
  spec.experts.listed = {0, 2};
  GroupedLinear map(std::move(frozen), std::make_unique<Adapter>(spec, info, E, 4, I, 1, parameters));
  GroupedMaps maps({&map});
  maps.fold(true);
  CHECK(maps.spare({}) == 0);
  CHECK(maps.scratch_elements_per_expert() == 4 * I);
}
