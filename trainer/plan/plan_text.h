// A plan as a person reads it.
#pragma once

#include <string>
#include <vector>

#include "trainer/plan/run_plan.h"

namespace moetune {

/// What one machine needs, takes and costs, with the parts of memory and time.
std::string plan_text(const RunPlan& plan, const std::vector<std::string>& changes);
/// A line a plan, those that fit first, cheapest first.
std::string plans_table(const std::vector<RunPlan>& plans);
/// "312.5 ms", "1.02 s".
std::string seconds_text(double seconds);
/// "3.2 h", "26 min", "2.1 days".
std::string hours_text(double hours);

}  // namespace moetune
