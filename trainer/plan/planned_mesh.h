// A recipe's mesh before any rank is there: model, shape, hosts, and the plan of what a rank holds. What drawings are
// made from.
//
//   const PlannedMesh mesh = plan_mesh(recipe, /*world_size=*/16, /*ranks_per_host=*/8);
#pragma once

#include <cstdint>
#include <string>

#include "moe/blueprint.h"
#include "moe/keep.h"
#include "parallel/comm/mesh.h"
#include "trainer/plan/memory_plan.h"
#include "trainer/recipe/recipe.h"
#include "trainer/sweep/step_program.h"

namespace moetune {

constexpr int64_t kUsualRanksPerHost = 8;  ///< GPUs of a node, as they are sold

struct PlannedMesh {
  Blueprint blueprint;
  MeshShape shape;
  int64_t ranks_per_host = 1;
  BaseFormat base = BaseFormat::kNf4;
  int64_t compute_bytes = 2;     ///< of a number in compute dtype
  MemoryPlan plan;               ///< of the fullest stage
  StepProgram program;           ///< of the same stage
  std::vector<KeptBlocks> kept;  ///< by stage
};

/// Needs config.json and no weights. `world_size` 0: as many ranks as the recipe's mesh asks for, dp 1 where it says
/// auto. `ranks_per_host` 0: eight. Throws UserError where mesh, ranks and model do not go together.
PlannedMesh plan_mesh(const Recipe& recipe, int64_t world_size, int64_t ranks_per_host);

/// "0-63", "5" for a run of one, "none": the index-th of `parts` equal runs of `total`.
std::string run_of(int64_t index, int64_t parts, int64_t total);
/// The same of the features of an expert that the rank at `tp` of the tensor axis holds.
std::string expert_features_of(const PlannedMesh& mesh, int64_t tp);

}  // namespace moetune
