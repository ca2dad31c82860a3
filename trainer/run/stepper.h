// One optimizer step on an assembled run: way down, turn, way up with gradients leaving layer by layer; then norm, clip
// and update.
//
//   Stepper stepper(recipe, assembly, &launch.progress());
//   StepReport report = stepper.train(batches, step, num_steps);  // the update goes on under the next step's way down
//   stepper.finish_update();                                      // before working copies or masters are read
#pragma once

#include "trainer/assemble.h"
#include "trainer/data/batches.h"
#include "trainer/run/evaluation.h"
#include "trainer/run/step_report.h"
#include "trainer/update/gradients.h"
#include "trainer/update/optimizer.h"

namespace moetune {

class Stepper {
 public:
  /// Takes the parameters' masters over. `run` must stay where it is. `progress`: told where the rank is; may be null.
  Stepper(const Recipe& recipe, Assembly& run, RankProgress* progress);
  ~Stepper();
  Stepper(const Stepper&) = delete;
  Stepper& operator=(const Stepper&) = delete;

  /// Step `step`, from 0, of `num_steps`. Throws NonFiniteError, or InternalError where replicas differ, before
  /// anything is updated. Collective over the mesh.
  StepReport train(Batches& batches, int64_t step, int64_t num_steps);
  /// Way down and way up of a step, and nothing comes of it. Where `train.keep` is auto and device memory does not
  /// suffice for what the plan keeps, blocks keep less, which is said; where it does not even if nothing is kept, the
  /// lack is thrown. Collective.
  void rehearse(Batches& batches, int64_t step);
  /// Whether rehearse() has planned anew.
  bool keeps_less() const { return keeps_less_; }
  /// trainer/run/evaluation.h of these batches, with what the optimizer still has to do done first. Collective.
  Evaluation evaluate(Batches& batches, int64_t max_sequences);

  /// Waits for what the optimizer still has to do, which is then no step's wait.
  void finish_update();
  Optimizer& optimizer() { return optimizer_; }
  const Partition& partition() const { return partition_; }
  /// By group of the partition: this rank's shard of the last step's gradient, clipped. Flush before reading: the
  /// update scales it in place.
  const std::vector<at::Tensor>& gradients() const { return reducer_.gradients(); }

 private:
  std::vector<StepBatch> groups_of(Batches& batches, int64_t step);
  void pass(const std::vector<StepBatch>& groups);
  /// One rank: keeps less until a pass fits.
  void keep_until_it_fits(const std::vector<StepBatch>& groups);
  /// Several: a rank that runs out of memory leaves the others in a collective. So a pass that keeps nothing comes
  /// first and shows what the plan did not know.
  void keep_what_fits(const std::vector<StepBatch>& groups);
  int64_t max_over_mesh(int64_t number);
  /// As much as fits into so many bytes less than was planned with. The same on all ranks.
  void keep_without(int64_t missing, const std::string& why);
  void sum_losses(const SweepResult& result, const BatchTotals& totals, StepReport& report);
  void update_router_bias(const at::Tensor& load_LE);
  /// What the step used, before it changes: nothing is pending, so nothing is waited for but the digests.
  void compare_replicas(StepReport& report);
  LayerHooks layer_hooks();

  const Recipe& recipe_;
  Assembly& run_;
  RankProgress* progress_;
  Partition partition_;
  GradientReducer reducer_;
  Optimizer optimizer_;
  Sweep sweep_;
  bool keeps_less_ = false;
};

}  // namespace moetune
