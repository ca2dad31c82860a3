#include "trainer/plan/planned_step.h"

#include <algorithm>

#include "moe/inventory.h"
#include "moe/router.h"
#include "trainer/recipe/recipe_meaning.h"

namespace moetune {

LayerId lowest_trained(const Blueprint& blueprint, const Recipe& recipe) {
  if (!recipe.adapter) return LayerId::embedding();
  const bool routers = recipe.router.train != RouterTraining::kNone;
  AdapterTargets targets = adapter_targets(recipe);
  for (const LayerId layer : blueprint.blocks(recipe.mtp.trains())) {
    const std::vector<LinearMap> maps = block_maps(blueprint, layer, &targets);
    const auto is_adapted = [](const LinearMap& map) { return map.adapter.has_value(); };
    if (std::any_of(maps.begin(), maps.end(), is_adapted) || (routers && blueprint.has_experts(layer))) return layer;
  }
  return blueprint.turn();
}

std::vector<std::vector<LinearMap>> planned_blocks(const Blueprint& blueprint, const Recipe& recipe) {
  AdapterTargets targets = adapter_targets(recipe);
  std::vector<std::vector<LinearMap>> blocks;
  for (const LayerId layer : blueprint.blocks(recipe.mtp.trains())) {
    blocks.push_back(block_maps(blueprint, layer, recipe.adapter ? &targets : nullptr));
  }
  if (recipe.adapter) targets.require_all_matched();
  return blocks;
}

PassTraits planned_traits(const Blueprint& blueprint, const Recipe& recipe, const MeshShape& mesh,
                          at::DeviceType device) {
  return {.compute = scalar_type(recipe.model.compute),
          .device = device,
          .train_weights = !recipe.adapter,
          .exchanged = mesh.ep > 1,
          .remote_ranks = expected_remote_ranks(blueprint.router, mesh.ep),
          .balance_loss = balance_spec(recipe, blueprint).is_on(),
          .parts = {mesh.tp, mesh.expert_tp, recipe.model.base},
          .trains_router = !recipe.adapter || recipe.router.train != RouterTraining::kNone};
}

StepProgram planned_step(const Blueprint& blueprint, const Recipe& recipe, int64_t kept_layers) {
  return step_program(blueprint, {.mode = StepMode::kTrain,
                                  .mtp = recipe.mtp.trains(),
                                  .lowest_trained = lowest_trained(blueprint, recipe),
                                  .keep_layers = kept_layers});
}

}  // namespace moetune
