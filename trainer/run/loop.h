// The training run: steps, evaluation, checkpoints, and what is seen of them.
//
//   int exit_code = train(recipe, {.resume = false}, launch);
#pragma once

#include <cstdint>
#include <string>

#include "parallel/comm/launch.h"
#include "trainer/recipe/recipe.h"

namespace moetune {

struct TrainOptions {
  bool resume = false;       ///< go on from the newest whole checkpoint of run.dir
  std::string version = {};  ///< the program's, for the receipt
  int64_t profile = 0;       ///< trace this many steps into run.dir/profile (trainer/run/step_trace.h); 0: none
};

/// Trains as the recipe says and returns the exit code: 0 done, 130 or 143 stopped by a signal after saving. Collective
/// over the job. Throws UserError, NonFiniteError; nothing that was saved before is touched by a failure.
int train(const Recipe& recipe, const TrainOptions& options, Launch& launch);

}  // namespace moetune
