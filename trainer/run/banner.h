// What a person reads before the first step: what trains on what, where, and the memory it takes.
//
//   log_info(banner(recipe, run, plan, data));
//
// Lines of at most 100 columns (paths excepted), each a name and its value.
#pragma once

#include <cstdint>
#include <string>

#include "trainer/assemble.h"
#include "trainer/plan/memory_plan.h"
#include "trainer/recipe/recipe.h"

namespace moetune {

/// The data of a run in numbers.
struct DataSummary {
  int64_t documents = 0;
  int64_t tokens = 0;
  int64_t targets = 0;         ///< tokens of the documents that are trained
  int64_t sequences = 0;       ///< that one epoch packs into
  int64_t eval_documents = 0;  ///< 0: none
  int64_t steps = 0;           ///< of the run
};

/// The start banner: model, mesh, device, numbers, adapter, data, and what this rank holds already beside the plan of
/// its parts.
std::string banner(const Recipe& recipe, const Assembly& run, const MemoryPlan& plan, const DataSummary& data);

}  // namespace moetune
