// A plan as JSON: what `moetune plan --json` prints and scripts/draw reads. docs/planner.md lists the keys.
#pragma once

#include <nlohmann/json_fwd.hpp>

#include <string>
#include <vector>

#include "trainer/plan/run_plan.h"

namespace moetune {

/// One plan; `changes`: what would make a run fit that does not.
nlohmann::ordered_json plan_json(const RunPlan& plan, const std::vector<std::string>& changes);
/// {"attention": N, "experts": N, "all": N}: layers that keep at least that.
nlohmann::ordered_json kept_json(const KeptBlocks& kept);

}  // namespace moetune
