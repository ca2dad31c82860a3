// The layout changes nothing but memory and time: `mpirun -np 8 moetune verify-layout RECIPE`.
//
//   return verify_layout(recipe, {}, launch);                                 // layouts that fit into the job's ranks
//   return verify_layout(recipe, {"dp=2,ep=2,tp=2,shard=all"}, launch);
//
// A tiny twin of the recipe's run (twin.h) takes a few steps in fp64 on one rank, and then on each layout, by the very
// code that trains. Compared are the losses of all steps, every gradient of the last step, what was trained, the
// routers' biases and the digest of the frozen weights. Summing in another order changes fp64 numbers by 1e-15 or so; a
// lost term, a stale copy or a wrong mask by far more than 1e-9.
#pragma once

#include <string>
#include <vector>

#include "parallel/comm/launch.h"
#include "trainer/recipe/recipe.h"

namespace moetune {

/// Prints a table, one line a layout, and returns 0 where all agree, 1 otherwise. `asked`: keys dp, ep, tp, expert_tp
/// (1), shard (none, all), offload (none, all: frozen weights and block inputs in host memory), buffer_rows (0: one
/// round) joined by commas; none: the recipe's own mesh and a set of others, as far as the job has ranks. Throws
/// UserError for a layout that does not parse or has more ranks than the job. Collective over the job.
int verify_layout(const Recipe& recipe, const std::vector<std::string>& asked, Launch& launch);

}  // namespace moetune
