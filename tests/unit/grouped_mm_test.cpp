// Grouped products against loops over rows in fp64, and a grouped linear map against finite differences.
#include "tests/support/catch.h"

#include "lora/grouped_linear.h"
#include "tests/support/numbers.h"

using namespace moetune;

namespace {

constexpr int64_t E = 4, I = 5, O = 3, X = 9;
const std::vector<int64_t> kCounts{4, 0, 3, 2};
const std::vector<int64_t> kExpertOfRow{0, 0, 0, 0, 2, 2, 2, 3, 3};

}  // namespace

TEST_CASE("rows meet the matrix of their group", "[grouped_mm]") {
  const at::Tensor x = random_normal({X, I}, 1), w = random_normal({E, O, I}, 2), dy = random_normal({X, O}, 3);
  const RowGroups groups = RowGroups::from_counts(kCounts, at::kCPU);
  CHECK(groups.ends == std::vector<int64_t>{4, 4, 7, 9});
  const at::Tensor y = grouped_mm(x, w.transpose(1, 2), groups), outer = grouped_outer(dy, x, groups);
  at::Tensor expected_y = at::zeros({X, O}, at::kDouble), expected_outer = at::zeros({E, O, I}, at::kDouble);
  for (int64_t row = 0; row < X; ++row) {
    for (int64_t o = 0; o < O; ++o) {
      for (int64_t i = 0; i < I; ++i) {
        expected_y[row][o] += w[kExpertOfRow[row]][o][i] * x[row][i];
        expected_outer[kExpertOfRow[row]][o][i] += dy[row][o] * x[row][i];
      }
    }
  }
  CHECK(distance(y, expected_y) < 1e-14);
  CHECK(distance(outer, expected_outer) < 1e-14);

  // A run of groups is the same product with rows numbered anew.
  for (const int64_t length : {1, 2, 3, 4, 9}) {
    const std::vector<RowGroups> runs = RowGroups::runs(kCounts, length, at::kCPU);
    CHECK(static_cast<int64_t>(runs.size()) == (E + length - 1) / length);
    int64_t first = 0, row = 0;
    for (const RowGroups& run : runs) {
      CHECK(run.ends_e.scalar_type() == at::kInt);
      CHECK(at::equal(run.ends_e.to(at::kLong), long_tensor(run.ends)));
      CHECK(at::equal(
          grouped_mm(x.narrow(0, row, run.num_rows()), w.narrow(0, first, run.num_groups()).transpose(1, 2), run),
          y.narrow(0, row, run.num_rows())));
      first += run.num_groups();
      row += run.num_rows();
    }
    CHECK(first == E);
    CHECK(row == X);
  }
  CHECK(RowGroups::runs(kCounts, 3, at::kCPU).at(1).ends == std::vector<int64_t>{2});
  CHECK(RowGroups::runs({}, 3, at::kCPU).at(0).num_rows() == 0);
  CHECK(grouped_mm(x.narrow(0, 0, 0), w.transpose(1, 2), RowGroups::from_counts({0, 0, 0, 0}, at::kCPU)).sizes() ==
        at::IntArrayRef({0, O}));
}

TEST_CASE("a grouped linear map differentiates as finite differences say", "[grouped_linear]") {
  Scratch scratch(at::kCPU, at::kDouble);
  scratch.reserve(E * O * I);
  DequantCounters counters;
  ParameterSet parameters(at::kCPU, at::kDouble);
  ParameterInfo info;
  info.name = "experts.*.up_proj";
  info.num_experts = E;
  const bool trained = GENERATE(false, true);
  std::unique_ptr<GroupedLinear> map;
  if (trained) {
    map = std::make_unique<GroupedLinear>(parameters.add(info, random_normal({E, O, I}, 2)));
  } else {
    auto frozen = std::make_unique<FrozenWeight>(FrozenShape{BaseFormat::kFp32, E, O, I}, at::kCPU, at::kDouble);
    for (int64_t e = 0; e < E; ++e) frozen->set(e, random_normal({O, I}, 20 + e));
    auto adapter = std::make_unique<Adapter>(AdapterSpec{2, 1.5, 0.3}, info, E, O, I, 1, parameters);
    adapter->b().master().copy_(random_normal({E, O, 2}, 5));
    adapter->b().refresh_working();
    map = std::make_unique<GroupedLinear>(std::move(frozen), std::move(adapter));
  }
  // Experts 1 .. 3 of the four: those of a chunk.
  const ExpertChunk chunk{1, 3, 4, RowGroups::from_counts({0, 3, 2}, at::kCPU)};
  const at::Tensor x = random_normal({5, I}, 1), dy = random_normal({5, O}, 3), token = at::arange(5, at::kLong);
  const StepRandom random{3, 1, true};
  auto value = [&](const at::Tensor& at_x) {
    const int64_t mark = scratch.mark();
    const double sum =
        (map->forward(at_x, map->dense(1, 3, scratch, counters), chunk, token, random) * dy).sum().item<double>();
    scratch.release_to(mark);
    return sum;
  };
  const at::Tensor dx = map->backward(dy, x, map->dense(1, 3, scratch, counters), chunk, token, random);
  scratch.reset();
  const at::Tensor step = random_normal({5, I}, 4) * 1e-5;
  CHECK((value(x + step) - value(x - step)) / 2 == Approx((dx * step).sum().item<double>()).epsilon(1e-7));
  for (Parameter& parameter : parameters.all()) {
    INFO(parameter.name());
    at::NoGradGuard no_grad;
    const at::Tensor direction = random_normal(parameter.master().sizes(), 6) * 1e-5, start = parameter.working.clone();
    parameter.working.copy_(start + direction);
    const double above = value(x);
    parameter.working.copy_(start - direction);
    const double below = value(x);
    parameter.working.copy_(start);
    CHECK((above - below) / 2 == Approx((parameter.gradient() * direction).sum().item<double>()).epsilon(1e-7));
    // Expert 0 is not in the chunk, expert 1 has no rows.
    CHECK(parameter.gradient().narrow(0, 0, 2).count_nonzero().item<int64_t>() == 0);
  }
}
