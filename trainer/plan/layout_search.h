// The layouts that a run could have on so many GPUs, and the best of them.
//
//   const RunPlan best = best_layout(request);                        // mesh, sharding, where the optimizer lies
//   const RunPlan best = best_layout(request, {.own_batch = true});   // the batch too
#pragma once

#include <optional>
#include <vector>

#include "trainer/plan/run_plan.h"

namespace moetune {

struct SearchOptions {
  bool own_batch = false;  ///< the step takes what the GPUs are best at, instead of the recipe's train.batch
};

/// Meshes of `gpus` ranks that go with the model, and whether frozen weights are sharded among copies; offloading and
/// kept layers are left to the plan.
std::vector<Recipe> layouts(const Recipe& recipe, const Blueprint& blueprint, int64_t gpus);

/// Of those that fit the fastest; where none does, the one that lacks least memory. Nothing where no mesh of so many
/// ranks goes with the model, the recipe's stages and, unless the step's is free, a batch with a sequence for each rank
/// that takes its own.
std::optional<RunPlan> find_best_layout(const PlanRequest& request, const SearchOptions& options = {});
/// The same; UserError instead of nothing.
RunPlan best_layout(const PlanRequest& request, const SearchOptions& options = {});

}  // namespace moetune
