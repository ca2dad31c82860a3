#include "trainer/plan/layout_search.h"

#include <algorithm>
#include <array>
#include <limits>
#include <optional>

#include "parallel/base/error.h"
#include "trainer/recipe/recipe_meaning.h"
#include "trainer/update/optimizer.h"

namespace moetune {
namespace {

// Sequences a rank that a step is tried with where the batch is free: weights are used twice a step whatever its
// tokens, but a step of more than a million of them makes fewer than most runs want.
constexpr int64_t kTokensOfRank[] = {32768, 16384, 8192, 4096};
constexpr int64_t kMostTokensOfStep = int64_t{1} << 20;

/// How far a plan is beyond its limits, in bytes.
int64_t lack(const RunPlan& plan) {
  return std::max<int64_t>(0, plan.device_bytes - plan.device_limit_bytes) +
         std::max<int64_t>(0, plan.host_bytes - plan.host_limit_bytes);
}

PlanRequest with(const PlanRequest& request, const Recipe& recipe) {
  PlanRequest other = request;
  other.recipe = recipe;
  return other;
}

/// Sequences of a step to try on so many ranks that take different data.
std::vector<int64_t> batches(const PlanRequest& request, int64_t data_ranks, bool own_batch) {
  if (!own_batch) return {request.recipe.train.batch};
  std::vector<int64_t> sizes;
  for (const int64_t tokens : kTokensOfRank) {
    const int64_t of_rank = std::max<int64_t>(1, tokens / request.recipe.data.max_tokens);
    const int64_t batch = of_rank * data_ranks;
    const bool small = of_rank == 1 || batch * request.recipe.data.max_tokens <= kMostTokensOfStep;
    if (small && std::find(sizes.begin(), sizes.end(), batch) == sizes.end()) sizes.push_back(batch);
  }
  return sizes;
}

/// Pipeline stages, tensor- and expert-parallel ranks to try. Stages where the recipe has some; else where all weights
/// train, which no rank shares with others: adapters fit without, and a pipeline has idle turns.
std::vector<std::array<int64_t, 3>> axes(const Recipe& recipe, const Blueprint& blueprint, int64_t gpus) {
  std::vector<int64_t> stages{recipe.mesh.pp};
  if (recipe.mesh.pp == 1 && !freezes_maps(recipe, blueprint)) {
    for (int64_t pp = 2; pp <= std::min<int64_t>(16, std::min(gpus, blueprint.num_layers())); pp *= 2) {
      stages.push_back(pp);
    }
  }
  std::vector<std::array<int64_t, 3>> found;
  for (const int64_t pp : stages) {
    for (int64_t tp = 1; tp <= std::min<int64_t>(8, gpus); tp *= 2) {
      for (int64_t ep = 1; pp * ep * tp <= gpus; ++ep) {
        if (gpus % (pp * ep * tp) == 0 && blueprint.router.experts % ep == 0) found.push_back({pp, tp, ep});
      }
    }
  }
  return found;
}

/// The plan's recipe with the optimizer on the device, where weights train and there may be room. Adapters are updated
/// in no time anywhere.
std::optional<Recipe> with_optimizer_on_device(const RunPlan& plan) {
  const Recipe& recipe = plan.request.recipe;
  if (!plan.request.machine.on_gpu() || trained_parts(recipe).none() || recipe.offload.optimizer == OffloadTier::kNone)
    return {};
  int64_t numbers = 0;
  for (const TrainedLayer& layer : plan.memory.trained_layers) numbers += layer.shard_numbers;
  // What is kept of the way down may make room for it.
  const int64_t state = Optimizer::state_bytes(numbers, scalar_type(recipe.model.compute));
  if (plan.device_bytes - plan.memory.kept_bytes + state > plan.device_limit_bytes) return {};
  Recipe other = recipe;
  other.offload.optimizer = OffloadTier::kNone;
  return other;
}

}  // namespace

std::vector<Recipe> layouts(const Recipe& recipe, const Blueprint& blueprint, int64_t gpus) {
  std::vector<Recipe> found;
  for (const auto& [pp, tp, ep] : axes(recipe, blueprint, gpus)) {
    Recipe tried = recipe;
    tried.mesh.pp = pp;
    tried.mesh.tp = tp;
    tried.mesh.ep = ep;
    tried.mesh.dp = gpus / (pp * ep * tp);
    tried.mesh.expert_tp = 1;
    for (const ShardScope shard : {ShardScope::kNone, ShardScope::kAll}) {
      if (shard == ShardScope::kAll && gpus == 1) continue;
      tried.mesh.shard = shard;
      try {
        mesh_shape(tried, blueprint, gpus);
        found.push_back(tried);
      } catch (const UserError&) {
        break;  // this mesh does not go with the model
      }
    }
  }
  return found;
}

std::optional<RunPlan> find_best_layout(const PlanRequest& request, const SearchOptions& options) {
  std::vector<Recipe> tried = layouts(request.recipe, request.blueprint, request.gpus);
  if (!options.own_batch) {  // ranks without a sequence
    std::erase_if(tried, [](const Recipe& recipe) { return recipe.train.batch < *recipe.mesh.dp * recipe.mesh.ep; });
  }
  if (tried.empty()) return {};
  std::optional<RunPlan> best, least;
  double fastest = 0.0;
  const auto consider = [&](RunPlan plan) {
    if (!plan.fits()) {
      if (!least || lack(plan) < lack(*least)) least = std::move(plan);
      return;
    }
    const double rate = expected_tokens_per_s(plan);
    if (best && rate <= fastest) return;
    fastest = rate;
    best = std::move(plan);
  };
  for (Recipe recipe : tried) {
    for (const int64_t batch : batches(request, *recipe.mesh.dp * recipe.mesh.ep, options.own_batch)) {
      recipe.train.batch = batch;
      RunPlan plan = plan_run_memory(with(request, recipe));
      std::optional<Recipe> on_device = with_optimizer_on_device(plan);
      consider(std::move(plan));
      if (on_device) consider(plan_run_memory(with(request, *on_device)));
    }
  }
  return plan_run(best ? best->request : least->request);
}

RunPlan best_layout(const PlanRequest& request, const SearchOptions& options) {
  if (std::optional<RunPlan> best = find_best_layout(request, options)) return *std::move(best);
  throw UserError(str("no mesh of ", request.gpus, " ranks goes with ", request.blueprint.router.experts,
                      " experts, mesh.pp ", request.recipe.mesh.pp,
                      options.own_batch ? "" : str(" and train.batch ", request.recipe.train.batch),
                      "; name another number of GPUs"));
}

}  // namespace moetune
