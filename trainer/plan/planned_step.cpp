#include "trainer/plan/planned_step.h"

#include <algorithm>

#include "moe/inventory.h"
#include "moe/router.h"
#include "trainer/recipe/recipe_meaning.h"

namespace moetune {

LayerId lowest_trained(const Blueprint& blueprint, const Recipe& recipe) {
  const TrainedParts parts = trained_parts(recipe);
  const bool router_adapters = router_adapter(recipe).has_value();
  AdapterTargets targets = adapter_targets(recipe);
  LayerId lowest = blueprint.turn();
  for (const TensorSpec& tensor : blueprint.tensors(recipe.mtp.trains())) {
    const LayerId layer = blueprint.completing_layer(tensor);
    if (layer >= lowest) continue;
    const bool adapted = tensor.role == TensorRole::kRouter
                             ? router_adapters
                             : tensor.held == Held::kLinear &&
                                   targets.match(tensor.leaf(), tensor.group, tensor.layer, tensor.stack).has_value();
    if (adapted || parts.trains(tensor)) lowest = layer;
  }
  return lowest;
}

bool mtp_input_trains(const Blueprint& blueprint, const Recipe& recipe) {
  if (!recipe.mtp.trains()) return false;
  const TrainedParts parts = trained_parts(recipe);
  const std::vector<TensorSpec> tensors = blueprint.tensors(/*with_mtp=*/true);
  return std::any_of(tensors.begin(), tensors.end(), [&](const TensorSpec& tensor) {
    const bool of_input = tensor.role == TensorRole::kMtpProjection || tensor.role == TensorRole::kMtpEmbeddingNorm ||
                          tensor.role == TensorRole::kMtpHiddenNorm || tensor.role == TensorRole::kMtpEmbedding;
    return of_input && parts.trains(tensor);
  });
}

std::vector<std::vector<LinearMap>> planned_blocks(const Blueprint& blueprint, const Recipe& recipe) {
  AdapterTargets targets = adapter_targets(recipe);
  const TrainedParts parts = trained_parts(recipe);
  std::vector<std::vector<LinearMap>> blocks;
  for (const LayerId layer : blueprint.blocks(recipe.mtp.trains())) {
    blocks.push_back(block_maps(blueprint, layer, &targets, parts));
  }
  targets.require_all_matched();
  return blocks;
}

PassTraits planned_traits(const Blueprint& blueprint, const Recipe& recipe, const MeshShape& mesh,
                          at::DeviceType device) {
  return {.compute = scalar_type(recipe.model.compute),
          .device = device,
          .exchanged = mesh.ep > 1,
          .remote_ranks = expected_remote_ranks(blueprint.router, mesh.ep),
          .balance_loss = balance_spec(recipe, blueprint).is_on(),
          .parts = {mesh.tp, mesh.expert_tp, recipe.model.base},
          .trains_router = trains_router(recipe)};
}

StepProgram planned_step(const Blueprint& blueprint, const Recipe& recipe, const KeptBlocks& kept,
                         const PipelinePlace& place, int64_t groups) {
  const bool ends = !place.layers || place.layers->is_last();
  const LayerId lowest = lowest_trained(blueprint, recipe);
  return step_program(blueprint, {.mode = StepMode::kTrain,
                                  .mtp = recipe.mtp.trains() && ends,
                                  .lowest_trained = lowest,
                                  .kept = kept,
                                  .pipeline = place,
                                  .groups = groups,
                                  .whole_loads = balance_spec(recipe, blueprint).takes_whole_loads(),
                                  .shared_embedding = place.stages > 1 && ends && lowest == LayerId::embedding() &&
                                                      end_uses_embedding(blueprint, recipe.mtp.trains()),
                                  .mtp_input_trains = ends && mtp_input_trains(blueprint, recipe)});
}

}  // namespace moetune
