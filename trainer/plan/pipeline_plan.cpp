#include "trainer/plan/pipeline_plan.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

#include "moe/block.h"
#include "parallel/base/ceil_div.h"
#include "parallel/base/error.h"
#include "trainer/plan/planned_step.h"
#include "trainer/recipe/recipe_meaning.h"

namespace moetune {
namespace {

// What using a number of a weight takes once, in the floating-point operations that a Hopper does meanwhile: written
// and read dense at 4 TB/s beside products at 700 TFLOP/s; fetched packed from other ranks or the host at 50 GB/s.
constexpr double kDenseFlops = 400.0, kFetchFlops = 8000.0;

struct LayerCosts {
  std::vector<double> flops;    ///< a row, both ways, by block of the trunk; the last with what stands behind it
  std::vector<double> numbers;  ///< of frozen weights on a rank, likewise
};

LayerCosts costs_of(const Blueprint& blueprint, const Recipe& recipe, const MeshShape& mesh) {
  PassTraits traits = planned_traits(blueprint, recipe, mesh, at::kCPU);
  traits.parts = {};
  traits.keys = 0.5 * static_cast<double>(recipe.data.max_tokens);
  LayerCosts costs;
  for (const std::vector<LinearMap>& maps : planned_blocks(blueprint, recipe)) {
    const BlockCost cost = block_cost(blueprint, maps, traits);
    costs.flops.push_back(cost.forward.products() + cost.again.products() + cost.backward.products());
    double numbers = 0.0;
    for (const LinearMap& map : maps) {
      if (!map.is_held_frozen()) continue;  // lies dense on the device
      const int64_t units = map.units(blueprint.router.experts / mesh.ep);
      numbers += static_cast<double>(units * map.outputs * map.inputs) / static_cast<double>(mesh.tp);
    }
    costs.numbers.push_back(numbers);
  }
  const double head = 6.0 * static_cast<double>(blueprint.width) * static_cast<double>(blueprint.vocab);
  if (recipe.mtp.trains()) {
    // The module's block and head belong to the last of the trunk.
    const double block = costs.flops.back(), numbers = costs.numbers.back();
    costs.flops.pop_back();
    costs.numbers.pop_back();
    costs.flops.back() += block + head;
    costs.numbers.back() += numbers;
  }
  costs.flops.back() += head;
  return costs;
}

std::vector<int64_t> given_layers(const Blueprint& blueprint, const Recipe& recipe) {
  const std::vector<int64_t>& layers = recipe.mesh.pp_layers;
  const std::string place = str(recipe.origin("mesh.pp_layers"), ": mesh.pp_layers: ");
  const auto stages = static_cast<int64_t>(layers.size());
  if (stages != recipe.mesh.pp) {
    throw UserError(
        str(place, stages, stages == 1 ? " stage is" : " stages are", " listed; mesh.pp is ", recipe.mesh.pp));
  }
  const int64_t all = std::accumulate(layers.begin(), layers.end(), int64_t{0});
  if (all != blueprint.num_layers()) {
    throw UserError(str(place, "the stages hold ", all, " layers together; the model has ", blueprint.num_layers()));
  }
  return layers;
}

int64_t best_groups(const Recipe& recipe, const MeshShape& mesh, const std::vector<Stage>& stages,
                    const LayerCosts& costs) {
  const auto sum = [](const std::vector<double>& all, const Stage& stage) {
    const auto first = all.begin() + stage.first_block().number();
    return std::accumulate(first, first + stage.num_blocks(), 0.0);
  };
  const int64_t sequences = ceil_div(recipe.train.batch, mesh.dp * mesh.ep);
  const double rows = static_cast<double>(sequences * recipe.data.max_tokens) / static_cast<double>(mesh.tp);
  double computing = 0.0, numbers = 0.0;
  for (const Stage& stage : stages) {
    computing = std::max(computing, rows * sum(costs.flops, stage));
    numbers = std::max(numbers, sum(costs.numbers, stage));
  }
  const OffloadFrozen::Kind offload = recipe.offload.frozen.kind;
  const bool fetched = recipe.mesh.shard != ShardScope::kNone || offload == OffloadFrozen::Kind::kAll ||
                       offload == OffloadFrozen::Kind::kBytes;
  const bool packed = is_quantised(recipe.model.base);
  const double using_weights = 2.0 * numbers * ((packed ? kDenseFlops : 0.0) + (fetched ? kFetchFlops : 0.0));
  const double best = using_weights > 0.0 ? std::sqrt(static_cast<double>(mesh.pp - 1) * computing / using_weights)
                                          : std::numeric_limits<double>::infinity();
  return std::clamp<int64_t>(best < static_cast<double>(sequences) ? std::llround(best) : sequences, 1, sequences);
}

}  // namespace

PipelinePlace PipelinePlan::place(int64_t stage) const {
  return {.stage = stage, .stages = static_cast<int64_t>(stages.size()), .layers = stages.at(stage), .mtp = mtp};
}

double PipelinePlan::bubble() const {
  const auto idle = static_cast<double>(stages.size() - 1);
  return idle / (static_cast<double>(groups) + idle);
}

std::vector<int64_t> cut_by_cost(const std::vector<double>& costs, int64_t parts) {
  const auto n = static_cast<int64_t>(costs.size());
  MT_CHECK(parts >= 1 && parts <= n, n, " items in ", parts, " parts");
  std::vector<double> before(n + 1, 0.0);
  std::partial_sum(costs.begin(), costs.end(), before.begin() + 1);
  struct Cut {
    double dearest = std::numeric_limits<double>::infinity(), squares = 0.0;
    int64_t last = 0;  // items of the last run
    bool operator<(const Cut& other) const {
      return dearest != other.dearest ? dearest < other.dearest : squares < other.squares;
    }
  };
  // best[p][i]: of the first i items in p runs.
  std::vector<std::vector<Cut>> best(parts + 1, std::vector<Cut>(n + 1));
  best[0][0] = {0.0, 0.0, 0};
  for (int64_t p = 1; p <= parts; ++p) {
    for (int64_t i = p; i <= n; ++i) {
      for (int64_t last = 1; last <= i - p + 1; ++last) {
        const Cut& rest = best[p - 1][i - last];
        const double cost = before[i] - before[i - last];
        best[p][i] = std::min(best[p][i], Cut{std::max(rest.dearest, cost), rest.squares + cost * cost, last});
      }
    }
  }
  std::vector<int64_t> sizes(parts);
  for (int64_t p = parts, i = n; p > 0; i -= best[p][i].last, --p) sizes[p - 1] = best[p][i].last;
  return sizes;
}

PipelinePlan plan_pipeline(const Blueprint& blueprint, const Recipe& recipe, const MeshShape& mesh) {
  PipelinePlan plan;
  plan.mtp = recipe.mtp.trains();
  plan.whole_loads = balance_spec(recipe, blueprint).takes_whole_loads();
  if (mesh.pp > blueprint.num_layers()) {
    throw UserError(str(recipe.origin("mesh.pp"), ": mesh.pp: ", mesh.pp, " stages; the model has ",
                        blueprint.num_layers(), " layers, and each stage holds one at the least"));
  }
  if (!recipe.mesh.pp_layers.empty()) plan.stages = stages_of(given_layers(blueprint, recipe));
  if (mesh.pp == 1) {
    plan.stages = {Stage::whole(blueprint)};
    plan.groups = recipe.mesh.pp_groups.value_or(1);
    return plan;
  }
  if (recipe.mesh.pp_groups) plan.groups = *recipe.mesh.pp_groups;
  if (recipe.mesh.pp_groups && !plan.stages.empty()) return plan;
  const LayerCosts costs = costs_of(blueprint, recipe, mesh);
  if (plan.stages.empty()) plan.stages = stages_of(cut_by_cost(costs.flops, mesh.pp));
  if (!recipe.mesh.pp_groups) plan.groups = best_groups(recipe, mesh, plan.stages, costs);
  return plan;
}

}  // namespace moetune
