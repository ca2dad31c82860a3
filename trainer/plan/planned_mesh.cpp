#include "trainer/plan/planned_mesh.h"

#include <algorithm>

#include "moe/families/family.h"
#include "moe/inventory.h"
#include "parallel/base/error.h"
#include "parallel/device/device_memory.h"
#include "trainer/plan/planned_step.h"
#include "trainer/recipe/recipe_meaning.h"

namespace moetune {
namespace {

std::string run_text(int64_t first, int64_t count) {
  return count == 0 ? "none" : count == 1 ? str(first) : str(first, "-", first + count - 1);
}

}  // namespace

PlannedMesh plan_mesh(const Recipe& recipe, int64_t world_size, int64_t ranks_per_host) {
  if (world_size == 0) world_size = recipe.mesh.pp * recipe.mesh.dp.value_or(1) * recipe.mesh.ep * recipe.mesh.tp;
  PlannedMesh mesh;
  mesh.blueprint = load_blueprint(recipe.model.path);
  mesh.shape = mesh_shape(recipe, mesh.blueprint, world_size);
  mesh.ranks_per_host = std::min(world_size, ranks_per_host > 0 ? ranks_per_host : kUsualRanksPerHost);
  mesh.base = recipe.model.base;
  mesh.compute_bytes = static_cast<int64_t>(c10::elementSize(scalar_type(recipe.model.compute)));
  const std::vector<MemoryPlan> stages =
      plan_stages(mesh.blueprint, recipe, mesh.shape,
                  {device_type(recipe), device_memory_bytes(device_type(recipe)), mesh.ranks_per_host});
  for (const MemoryPlan& stage : stages) mesh.kept.push_back(stage.kept);
  mesh.plan = fullest(stages);
  const PipelinePlan& pipeline = mesh.plan.pipeline;
  mesh.program = planned_step(mesh.blueprint, recipe, mesh.plan.kept, pipeline.place(mesh.plan.stage), pipeline.groups);
  return mesh;
}

std::string run_of(int64_t index, int64_t parts, int64_t total) {
  return run_text(index * (total / parts), total / parts);
}

std::string expert_features_of(const PlannedMesh& mesh, int64_t tp) {
  const int64_t width = mesh.blueprint.experts.width;
  const MatrixCut cut = TensorParts{mesh.shape.tp, mesh.shape.expert_tp, mesh.base}.expert_features(mesh.blueprint, tp);
  return run_text(cut.first_output(width), cut.outputs(width));
}

}  // namespace moetune
