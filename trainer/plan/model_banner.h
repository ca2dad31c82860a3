// What a person reads of a model before anything runs: what trains on what, and where.
//
//   log_info(banner_of_model(recipe, blueprint, mesh, plan));
//
// Lines of at most 100 columns (paths excepted), each a name and its value.
#pragma once

#include <string>

#include "trainer/plan/memory_plan.h"
#include "trainer/recipe/recipe.h"

namespace moetune {

/// The lines on model, mesh, base and what trains, for the banner and for `validate`.
std::string banner_of_model(const Recipe& recipe, const Blueprint& blueprint, const MeshShape& mesh,
                            const MemoryPlan& plan);
/// "1 shared", or "a shared one of 5632 features" where it is no multiple of a routed one.
std::string shared_text(const ExpertSpec& experts);
/// What narrows the targets: " of layers 0, 10-20, of the experts 0-3"; empty where nothing does.
std::string narrowing_text(const AdapterRecipe& adapter);
/// One line: `name` in its column, then `value`; ends in a newline.
std::string banner_line(const std::string& name, const std::string& value);

/// A line a stage, and one of groups and bubble; nothing where there is but one stage.
std::string pipeline_lines(const PipelinePlan& pipeline);

}  // namespace moetune
