// How a recipe's pipeline is cut, and in how many groups the local batch goes through it.
//
//   const PipelinePlan pipeline = plan_pipeline(blueprint, recipe, mesh);
//   pipeline.stages[mesh.here().pp];      // layers of this rank's stage
//   pipeline.groups;                      // of documents, one after the other
//
// Of P stages and G groups (P - 1) of (G + P - 1) turns are idle; every group makes each layer's weights dense, and
// fetches them, once more on both ways. With C what a stage computes on the step's rows, and W what it takes to use its
// weights on both ways, a step takes (G + P - 1) (C / G + W), which is least at G = sqrt((P - 1) C / W).
#pragma once

#include <vector>

#include "parallel/comm/mesh.h"
#include "trainer/recipe/recipe.h"
#include "trainer/sweep/step_program.h"

namespace moetune {

struct PipelinePlan {
  std::vector<Stage> stages;
  int64_t groups = 1;
  bool mtp = false;          ///< takes part, on the last stage
  bool whole_loads = false;  ///< of a balance loss (StepTraits)

  PipelinePlace place(int64_t stage) const;
  int64_t groups_in_flight(int64_t stage) const { return moetune::groups_in_flight(place(stage), groups, whole_loads); }
  /// Share of a stage's time in which it has nothing to do.
  double bubble() const;
};

/// mesh.pp_layers and mesh.pp_groups; where they are not given, the cut whose dearest stage is the cheapest in
/// floating-point operations, the head and the MTP module counted, and the G above, at most one group a sequence of a
/// rank. Where weights themselves train and GPUs compute, the cut weighs their updates too (pipeline_cut.h), at fixed
/// rates: every rank, a plan and the run that it is of have the same. One stage has one group unless the recipe asks
/// for more. Throws UserError, with the recipe's line, where there are fewer layers than stages, or mesh.pp_layers does
/// not go with the model or the mesh.
PipelinePlan plan_pipeline(const Blueprint& blueprint, const Recipe& recipe, const MeshShape& mesh);

}  // namespace moetune
