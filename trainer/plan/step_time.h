// How long a training step takes: its program (trainer/sweep/step_program.h) walked on four lanes, with the costs that
// the parts of blocks declare and the rates of a machine.
//
//   compute   products, attention, row kernels, making packed weights dense: what the device's stream does in its order
//   copy      weights from host memory, ahead of their use as the weight store fetches them
//   network   shards of weights ahead of their use; tokens to experts and home; sums of the tensor axis; gradients;
//             what stages send each other
//   host      AdamW, layer by layer, under the next step's way down
//
//   const StepTime time = step_time(blueprint, recipe, mesh, stages, rates, {.rows = 8192, .keys = data.keys});
//   time.seconds;             // of a step that follows others like it
//   for (part : time.parts)   // exposed_s add up to seconds
#pragma once

#include <string>
#include <vector>

#include "moe/blueprint.h"
#include "trainer/plan/kernel_rates.h"
#include "trainer/plan/memory_plan.h"
#include "trainer/plan/seen_keys.h"
#include "trainer/recipe/recipe.h"

namespace moetune {

/// What a step brings to the fullest rank.
struct StepLoad {
  double rows = 0.0;         ///< tokens of its documents, of all groups; a tensor axis shares them
  SeenKeys keys;             ///< that they see, by the layer's mask
  double expert_skew = 1.0;  ///< routed rows of the busiest rank of an expert axis, over their mean
  double computing = 1.0;    ///< what receipts say that computing takes, over the sum of its parts
};

enum class Lane { kCompute, kCopy, kNetwork, kHost };
std::string to_string(Lane lane);

struct TimePart {
  std::string name;
  double busy_s = 0.0;     ///< of its lane
  double exposed_s = 0.0;  ///< for which the computing lane does it, or stands waiting for it
};

/// What a lane does for an operation, from the beginning of the step on.
struct LaneSpan {
  Lane lane = Lane::kCompute;
  std::string name;
  double begin_s = 0.0, end_s = 0.0;
};

struct StepTime {
  double seconds = 0.0;
  std::vector<TimePart> parts;
  std::vector<LaneSpan> spans;
};

/// `stages`: the plans of a rank of each, which say where weights lie and what blocks keep. Of several
/// stages the slowest sets the pace, and each stands idle for the turns in which no group has come to it or all have
/// left it: the part "bubble".
StepTime step_time(const Blueprint& blueprint, const Recipe& recipe, const MeshShape& mesh,
                   const std::vector<MemoryPlan>& stages, const KernelRates& rates, const StepLoad& load);
/// The same of an evaluation of so many rows on the rank: a way down and the head's loss.
double evaluation_seconds(const Blueprint& blueprint, const Recipe& recipe, const MeshShape& mesh,
                          const std::vector<MemoryPlan>& stages, const KernelRates& rates, const StepLoad& load);

}  // namespace moetune
