#include "trainer/plan/pipeline_plan.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

#include "moe/block.h"
#include "moe/inventory.h"
#include "parallel/base/ceil_div.h"
#include "parallel/base/error.h"
#include "trainer/plan/pipeline_cut.h"
#include "trainer/plan/planned_step.h"
#include "trainer/recipe/recipe_meaning.h"

namespace moetune {
namespace {

// What using a number of a weight takes once, in the floating-point operations that a Hopper does meanwhile: written
// and read dense at 4 TB/s beside products at 700 TFLOP/s; fetched packed from other ranks or the host at 50 GB/s.
constexpr double kDenseFlops = 400.0, kFetchFlops = 8000.0;

// What updating a number takes, in the floating-point operations that a Hopper does meanwhile. AdamW moves 36 bytes of
// host memory a number (master, both moments and gradient read, three of them and the bf16 copy written, gradient and
// copy passing once more over PCIe), at 100 GB/s a rank: 109 and 123 were measured on H200 hosts. Products, counted as
// here with what may be computed again, go at 450 TFLOP/s: 1.08 B numbers x 8 x 32,768 tokens in the 0.63 s that a step
// does not wait (docs/benchmarks/full_training_h200_202611.md). No profile's rates: training has none, and its cut must
// be the plan's.
constexpr double kUpdateBytes = 36.0, kHostBytesPerS = 100e9, kDeviceFlopsPerS = 450e12;
constexpr double kUpdateFlops = kUpdateBytes / kHostBytesPerS * kDeviceFlopsPerS;

struct LayerCosts {
  std::vector<double> flops;    ///< a row, both ways, by block of the trunk; the last with what stands behind it
  std::vector<double> down;     ///< of these the way down, by block alone
  std::vector<double> numbers;  ///< of frozen weights on a rank, by block, the last as of flops
};

LayerCosts costs_of(const Blueprint& blueprint, const Recipe& recipe, const MeshShape& mesh) {
  PassTraits traits = planned_traits(blueprint, recipe, mesh, at::kCPU);
  traits.parts = {};
  traits.keys = 0.5 * static_cast<double>(recipe.data.max_tokens);
  LayerCosts costs;
  for (const std::vector<LinearMap>& maps : planned_blocks(blueprint, recipe)) {
    const BlockCost cost = block_cost(blueprint, maps, traits);
    costs.flops.push_back(cost.forward.products() + cost.again.products() + cost.backward.products());
    costs.down.push_back(cost.forward.products());
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
    costs.down.pop_back();
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

/// Sequences of a rank in a step.
int64_t sequences_of(const Recipe& recipe, const MeshShape& mesh) {
  return ceil_div(recipe.train.batch, mesh.dp * mesh.ep);
}
/// Rows that a rank computes in a step, of all groups.
double rows_of(const Recipe& recipe, const MeshShape& mesh) {
  return static_cast<double>(sequences_of(recipe, mesh) * recipe.data.max_tokens) / static_cast<double>(mesh.tp);
}

/// What the cut weighs, in floating-point operations and bytes of a rank; plan.groups are known.
class LoadOfStages {
 public:
  LoadOfStages(const Blueprint& blueprint, const Recipe& recipe, const MeshShape& mesh, const LayerCosts& costs,
               const PipelinePlan& plan)
      : blueprint_(blueprint), recipe_(recipe), mesh_(mesh), trained_(trained_parts(recipe)) {
    const double rows = rows_of(recipe, mesh), group_rows = rows / static_cast<double>(plan.groups);
    for (const double flops : costs.flops) load_.work.push_back(rows * flops);
    for (const double flops : costs.down) load_.down.push_back(group_rows * flops);
    load_.groups = plan.groups;
    if (trained_.none() || device_type(recipe) == at::kCPU) return;
    load_.update.assign(costs.flops.size(), 0.0);
    load_.bytes.assign(costs.flops.size(), 0.0);
    load_.ends_share_first = end_uses_embedding(blueprint, recipe.mtp.trains());
    load_.input_bytes = group_rows * static_cast<double>(blueprint.width) * kBf16;
    for (int64_t stage = 0; stage < mesh.pp; ++stage) {
      load_.in_flight.push_back(groups_in_flight({.stage = stage, .stages = mesh.pp}, plan.groups, plan.whole_loads));
    }
    for (const TensorSpec& tensor : plain_tensors(blueprint, recipe.mtp.trains())) add(tensor);
    for (const LinearMap& map : linear_maps(blueprint, recipe.mtp.trains())) add(map);
  }

  const PipelineLoad& load() const { return load_; }

 private:
  static constexpr double kPacked = 0.5625, kBf16 = 2.0, kFp32 = 4.0;  // bytes of a number

  void add(const TensorSpec& tensor) {
    const double all = tensor.stack > 0 ? static_cast<double>(tensor.stack) : 1.0;
    const double trained = !trained_.trains(tensor) ? 0.0
                           : tensor.stack > 0 ? static_cast<double>(trained_.experts_of(tensor).count(tensor.stack))
                                              : 1.0;
    const auto numbers = static_cast<double>(tensor.numel());
    // The ranks of a stage update each number once; a GPU in next to no time.
    const double on_host = recipe_.offload.optimizer == OffloadTier::kHost ? 1.0 : 0.0;
    const double update =
        on_host * kUpdateFlops * trained * numbers / static_cast<double>(mesh_.dp * mesh_.ep * mesh_.tp);
    // Unsharded: shards make all stages' bytes smaller alike, and cuts are held against each other alone.
    const double frozen = is_quantised(recipe_.model.base) ? kPacked : kBf16;
    const double gradient = recipe_.train.gradients == GradientType::kBf16 ? kBf16 : kFp32;
    const double bytes = numbers * ((all - trained) * frozen + trained * (kBf16 + gradient)) / holders(tensor);
    const LayerId layer = blueprint_.completing_layer(tensor);
    if (layer == LayerId::embedding()) {
      load_.first_update += update;
      load_.first_bytes += bytes;
    } else if (layer.number() >= blueprint_.num_layers()) {
      load_.last_update += update;
      load_.last_bytes += bytes;
    } else {
      load_.update[layer.number()] += update;
      load_.bytes[layer.number()] += bytes;
    }
  }

  /// Ranks that hold a copy of the tensor together.
  double holders(const TensorSpec& tensor) const {
    const TensorParts parts{mesh_.tp, mesh_.expert_tp, recipe_.model.base};
    const bool cut = is_cut(tensor, parts) || parts.cut_without_copies(tensor).cuts_inputs();
    return static_cast<double>((cut ? parts.of(tensor) : 1) * (tensor.stack > 0 ? mesh_.ep : 1));
  }

  const Blueprint& blueprint_;
  const Recipe& recipe_;
  const MeshShape& mesh_;
  TrainedParts trained_;
  PipelineLoad load_;
};

int64_t best_groups(const Recipe& recipe, const MeshShape& mesh, const std::vector<Stage>& stages,
                    const LayerCosts& costs) {
  const auto sum = [](const std::vector<double>& all, const Stage& stage) {
    const auto first = all.begin() + stage.first_block().number();
    return std::accumulate(first, first + stage.num_blocks(), 0.0);
  };
  const int64_t sequences = sequences_of(recipe, mesh);
  const double rows = rows_of(recipe, mesh);
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
  const auto choose_groups = [&] {
    if (!recipe.mesh.pp_groups) plan.groups = best_groups(recipe, mesh, plan.stages, costs);
  };
  const bool cuts = plan.stages.empty();
  if (cuts) plan.stages = stages_of(cut_by_cost(costs.flops, mesh.pp));
  choose_groups();
  if (!cuts) return plan;
  // How long a group is down is known from the groups of the cut that weighs products alone.
  plan.stages = stages_of(cut_pipeline(LoadOfStages(blueprint, recipe, mesh, costs, plan).load(), mesh.pp));
  choose_groups();
  return plan;
}

}  // namespace moetune
