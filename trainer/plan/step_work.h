// How much a training step computes: the costs that parts of blocks declare, along the step program.
//
//   const Work work = step_work(blueprint, recipe, plan.kept, {.tokens = 16384, .keys = SeenKeys({{4096, 4}})});
//   work_text(work);    // "3.4 PFLOP a step: dense 61 %, experts 24 %, attention 15 %"
#pragma once

#include <string>

#include "moe/blueprint.h"
#include "moe/cost.h"
#include "trainer/plan/pipeline_plan.h"
#include "trainer/plan/seen_keys.h"
#include "trainer/recipe/recipe.h"

namespace moetune {

struct StepTokens {
  int64_t tokens = 0;  ///< of the step
  SeenKeys keys;       ///< that they see, by the layer's mask
};

/// Of all ranks together, recomputation included, but for what `kept` spares. Every token counts as a target. Bytes
/// sent are those of one rank alone: none. `pipeline`: `kept` are blocks of each of its stages.
Work step_work(const Blueprint& blueprint, const Recipe& recipe, const KeptBlocks& kept, const StepTokens& of,
               const PipelinePlan& pipeline = {});

std::string work_text(const Work& work);

}  // namespace moetune
