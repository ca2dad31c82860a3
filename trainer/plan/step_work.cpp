#include "trainer/plan/step_work.h"

#include <cmath>
#include <cstdio>

#include "moe/block.h"
#include "parallel/base/error.h"
#include "trainer/plan/planned_step.h"
#include "trainer/recipe/recipe_meaning.h"

namespace moetune {
namespace {

/// Of one stage after the other, or of the whole model.
StepProgram program_of(const Blueprint& blueprint, const Recipe& recipe, const KeptBlocks& kept,
                       const PipelinePlan& pipeline) {
  if (pipeline.stages.empty()) return planned_step(blueprint, recipe, kept);
  StepProgram all;
  for (size_t stage = 0; stage < pipeline.stages.size(); ++stage) {
    const StepProgram own =
        planned_step(blueprint, recipe, kept, pipeline.place(static_cast<int64_t>(stage)), /*groups=*/1);
    all.insert(all.end(), own.begin(), own.end());
  }
  return all;
}

}  // namespace

Work step_work(const Blueprint& blueprint, const Recipe& recipe, const KeptBlocks& kept, const StepTokens& of,
               const PipelinePlan& pipeline) {
  const TrainedParts trained = trained_parts(recipe);
  PassTraits traits{.compute = scalar_type(recipe.model.compute),
                    .device = device_type(recipe),
                    .parts = {},
                    .trains_router = trains_router(recipe)};
  std::vector<BlockCost> costs;  // by LayerId::number()
  for (const std::vector<LinearMap>& maps : planned_blocks(blueprint, recipe)) {
    traits.keys = of.keys.of(blueprint.layer(maps.front().layer).attention.mask);
    costs.push_back(block_cost(blueprint, maps, traits));
  }
  const auto rows = static_cast<double>(of.tokens), D = static_cast<double>(blueprint.width),
             V = static_cast<double>(blueprint.vocab);
  Work work;
  for (const StepOp& op : program_of(blueprint, recipe, kept, pipeline)) {
    switch (op.kind) {
      case StepOp::Kind::kDown: work.add(costs.at(op.layer.number()).forward, rows); break;
      case StepOp::Kind::kUp:
        work.add(costs.at(op.layer.number()).again_where(op.keep), rows);
        work.add(costs.at(op.layer.number()).backward, rows);
        break;
      case StepOp::Kind::kHead: work.dense += rows * (trained.has(ModelPart::kHead) ? 6.0 : 4.0) * D * V; break;
      case StepOp::Kind::kMtpInput: work.dense += rows * forward_flops(mtp_projection(blueprint, trained)); break;
      case StepOp::Kind::kMtpInputGradient:
        work.dense += rows * backward_flops(mtp_projection(blueprint, trained));
        break;
      case StepOp::Kind::kAwait:
      case StepOp::Kind::kEmbed:
      case StepOp::Kind::kTurn:
      case StepOp::Kind::kLoads:
      case StepOp::Kind::kReceive:
      case StepOp::Kind::kSend:
      case StepOp::Kind::kReceiveGradient:
      case StepOp::Kind::kSendGradient:
      case StepOp::Kind::kEmbedGradient:
      case StepOp::Kind::kReduce: break;
    }
  }
  return work;
}

std::string work_text(const Work& work) {
  const double all = work.products();
  const std::vector<std::string> units{"GFLOP", "TFLOP", "PFLOP", "EFLOP"};
  size_t unit = 0;
  double value = all / 1e9;
  while (value >= 1000.0 && unit + 1 < units.size()) value /= 1000.0, ++unit;
  char number[32];
  std::snprintf(number, sizeof number, "%.3g", value);
  const auto share = [&](double part) { return std::lround(all > 0.0 ? 100.0 * part / all : 0.0); };
  return str(number, " ", units[unit], " a step: dense ", share(work.dense + work.scores), " %, experts ",
             share(work.grouped), " %, attention ", share(work.attention), " %");
}

}  // namespace moetune
