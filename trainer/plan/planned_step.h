// The step of a run that does not exist yet, from its recipe.
#pragma once

#include <vector>

#include "moe/blueprint.h"
#include "moe/cost.h"
#include "parallel/comm/mesh.h"
#include "trainer/recipe/recipe.h"
#include "trainer/sweep/step_program.h"

namespace moetune {

/// The lowest layer in which the recipe trains anything; the turn where nothing does.
LayerId lowest_trained(const Blueprint& blueprint, const Recipe& recipe);
/// Whether it trains anything of what makes the input of the MTP module's block (StepTraits).
bool mtp_input_trains(const Blueprint& blueprint, const Recipe& recipe);

/// The maps of all blocks as they are held, with their adapters, by LayerId::number(). Throws UserError where targets
/// match nothing.
std::vector<std::vector<LinearMap>> planned_blocks(const Blueprint& blueprint, const Recipe& recipe);

/// What decides costs on a rank of the mesh; keys and slices are left to the caller.
PassTraits planned_traits(const Blueprint& blueprint, const Recipe& recipe, const MeshShape& mesh,
                          at::DeviceType device);

/// The training step that the recipe will run, blocks keeping what `kept` says: all layers in one, or those of a stage,
/// in groups of documents.
StepProgram planned_step(const Blueprint& blueprint, const Recipe& recipe, const KeptBlocks& kept,
                         const PipelinePlace& place = {}, int64_t groups = 1);

}  // namespace moetune
