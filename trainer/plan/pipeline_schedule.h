// When each stage of a pipeline has which group of documents: the programs of all stages, each operation as long as it
// is on its stage alone, walked together. A stage goes on where what it receives is there, so that turns, bubble and
// waits come out of the programs and are laid down nowhere else.
//
//   const PipelineSchedule schedule = plan_schedule(blueprint, recipe, mesh, stages, rates, load);
//   for (const StagePass& pass : schedule.passes) ...   // a box each
//
// Updates of all stages begin where the step before ends, and the first group waits for those it finds undone
// (pipeline_cut.h). step_time() lets every stage take the turns of the slowest, with all that this one waits for; here
// stages are as uneven as they are.
#pragma once

#include <cstdint>
#include <vector>

#include "trainer/plan/step_time.h"
#include "trainer/sweep/step_program.h"

namespace moetune {

/// A group's way down or up through a stage. The last stage's head is part of its way up.
struct StagePass {
  int64_t stage = 0, group = 0;
  bool up = false;
  double begin_s = 0.0, end_s = 0.0;  ///< of the step
  double update_wait_s = 0.0;         ///< in between, for the optimizer
  double arrives_s = 0.0;             ///< of what it sends on, at its neighbour; 0: it sends nothing
};

struct PipelineSchedule {
  std::vector<StagePass> passes;  ///< by stage, those of a stage in their order
  double seconds = 0.0;           ///< until the last stage is through, what follows its last pass included
};

/// Of the step that step_time() times, from the same plans of a rank of each stage.
PipelineSchedule plan_schedule(const Blueprint& blueprint, const Recipe& recipe, const MeshShape& mesh,
                               const std::vector<MemoryPlan>& stages, const KernelRates& rates, const StepLoad& load);

/// By stage: its program, and how long a step of it alone takes, which follows others like it.
PipelineSchedule schedule_stages(const std::vector<StepProgram>& programs, const std::vector<StepTime>& times);

}  // namespace moetune
