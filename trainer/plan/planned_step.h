// The step of a run that does not exist yet, from its recipe.
#pragma once

#include "moe/blueprint.h"
#include "trainer/recipe/recipe.h"
#include "trainer/sweep/step_program.h"

namespace moetune {

/// The lowest layer in which the recipe trains anything; the turn where nothing does.
LayerId lowest_trained(const Blueprint& blueprint, const Recipe& recipe);

/// The training step that the recipe will run, the last `kept_layers` blocks keeping their graph.
StepProgram planned_step(const Blueprint& blueprint, const Recipe& recipe, int64_t kept_layers);

}  // namespace moetune
