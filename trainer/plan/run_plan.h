// What a run needs, takes and costs on machines that are not there: memory, time and money from its recipe alone.
//
//   const RunPlan plan = plan_run({.recipe = recipe, .blueprint = blueprint, .machine = shipped_machine("h100"),
//                                  .gpus = 16, .data = DataAmount::of_equal(50000, 1024), .price = price});
//   plan.fits();  plan.time.expected.seconds;  plan.dollars();
//
// docs/planner.md says how each figure comes about.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "moe/blueprint.h"
#include "parallel/comm/mesh.h"
#include "trainer/plan/data_amount.h"
#include "trainer/plan/machine_profile.h"
#include "trainer/plan/memory_plan.h"
#include "trainer/plan/pipeline_schedule.h"
#include "trainer/plan/price_table.h"
#include "trainer/plan/step_time.h"
#include "trainer/recipe/recipe.h"

namespace moetune {

struct PlanRequest {
  Recipe recipe;
  Blueprint blueprint;
  MachineProfile machine;
  int64_t gpus = 1;  ///< ranks
  NetworkProfile network;
  DiskProfile disk;
  DataAmount data;                ///< that is trained on: what data.eval_split holds out is taken off
  double expert_skew = 0.0;       ///< 0: not known
  int64_t host_memory_bytes = 0;  ///< for each rank; 0: the machine's
  std::optional<Price> price = {};
  bool corrected = false;  ///< by receipts of runs on such a machine
};

/// A part of a rank's memory.
struct PlannedBytes {
  std::string name;
  int64_t bytes = 0;
  bool on_host = false;
  std::string phase;  ///< "run": always; "load", "step", "save": then, and of what a phase has the largest counts
  std::string formula;
};

struct PlannedTime {
  StepTime low, expected, high;
  PipelineSchedule schedule;  ///< of the expected step; of one stage, nothing
  double tokens_per_s = 0.0;  ///< expected, of all ranks
  bool calibrated = false;    ///< measured on the machine that is planned for, or corrected by receipts of it
};

struct PlannedRun {
  int64_t steps = 0;
  int64_t tokens = 0;  ///< documents x length x epochs
  double load_s = 0.0, evaluation_s = 0.0, save_s = 0.0;
  double hours_low = 0.0, hours = 0.0, hours_high = 0.0;
};

struct RunPlan {
  PlanRequest request;
  MeshShape mesh = {};
  std::vector<MemoryPlan> stages = {};
  MemoryPlan memory = {};                ///< of the fullest stage
  std::vector<PlannedBytes> parts = {};  ///< of the rank that has most
  int64_t device_bytes = 0, host_bytes = 0, device_limit_bytes = 0, host_limit_bytes = 0;
  PlannedTime time = {};
  PlannedRun run = {};

  bool fits() const { return device_bytes <= device_limit_bytes && host_bytes <= host_limit_bytes; }
  /// Of the run's hours, or of so many; 0 without a price.
  double dollars() const { return dollars(run.hours); }
  double dollars(double hours) const;
  double dollars_per_million_tokens() const { return dollars_per_million_tokens(run.hours); }
  double dollars_per_million_tokens(double hours) const;
};

/// Throws UserError where mesh, ranks and model do not go together, or documents are longer than what the model
/// computes exactly (Blueprint::longest_document).
RunPlan plan_run(const PlanRequest& request);
/// The same of a run whose memory is planned already, by stage.
RunPlan plan_run(const PlanRequest& request, const std::vector<MemoryPlan>& stages);
/// Memory alone, and time as it is expected beside it: what a search asks.
RunPlan plan_run_memory(const PlanRequest& request);
double expected_tokens_per_s(const RunPlan& memory);

/// The smallest changes of the recipe, of the number of GPUs or of their kind with which a run that does not fit would,
/// one a line; empty: none was found. `others`: other machines to think of.
std::vector<std::string> changes_to_fit(const RunPlan& plan, const std::vector<MachineProfile>& others);

}  // namespace moetune
