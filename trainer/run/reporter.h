// What is seen of a run: the terminal, log.jsonl and TensorBoard, all from rank 0.
//
//   Reporter reporter(recipe, run, folder, digest, num_steps, resumed, rank == 0);
//   reporter.show_plan(plan, data);
//   reporter.start(data, changes);      // from here on there are files
//   reporter.step(report);
#pragma once

#include <chrono>
#include <filesystem>
#include <memory>
#include <optional>

#include "trainer/assemble.h"
#include "trainer/plan/memory_plan.h"
#include "trainer/recipe/recipe_changes.h"
#include "trainer/run/banner.h"
#include "trainer/run/metrics/log_file.h"
#include "trainer/run/metrics/progress.h"
#include "trainer/run/metrics/tensorboard.h"
#include "trainer/run/step_report.h"

namespace moetune {

/// How a checkpoint came to be.
struct SaveReport {
  int64_t step;        ///< whose state it holds
  int64_t whole_step;  ///< steps done when it was known to be whole: more than `step` where it was written beside them
  std::chrono::steady_clock::time_point begun, whole;
  double exposed_s;  ///< that training stood still for it
  double check_s;    ///< of these: comparing replicas and the frozen weights
};

class Reporter {
 public:
  /// `speaks`: false on all ranks but one, where every call does nothing.
  Reporter(const Recipe& recipe, const Assembly& run, const std::filesystem::path& folder, std::string frozen_digest,
           int64_t num_steps, std::optional<int64_t> resumed, bool speaks);

  /// The banner. Writes nothing to the run folder.
  void show_plan(const MemoryPlan& plan, const DataSummary& data);
  /// What start() logs, and end() holds beside what was measured. Before start(), for each plan that is made.
  void plan_is(const MemoryPlan& plan);
  /// Opens the files. A resumed run's log is cut back to its checkpoint; `changes` are the values that it has and the
  /// run so far had not.
  void start(const DataSummary& data, const std::vector<RecipeChange>& changes);
  void step(const StepReport& report);
  /// `best`: the least loss so far of the steps whose checkpoints are kept.
  void evaluation(int64_t step, double loss, int64_t target_tokens, bool best);
  /// A checkpoint is whole.
  void saved(const SaveReport& report);
  /// `stop_signal`: 0 when the run is done.
  void end(int64_t step, int stop_signal);

 private:
  double elapsed_s() const;
  /// Busiest over mean expert of each MoE layer.
  static std::vector<double> max_over_mean(const at::Tensor& load_LE);

  const Recipe& recipe_;
  const Assembly& run_;
  std::filesystem::path folder_;
  std::string frozen_digest_;
  int64_t num_steps_;
  std::optional<int64_t> resumed_;
  bool speaks_;
  std::unique_ptr<LogFile> log_;
  std::unique_ptr<TensorBoard> board_;
  std::unique_ptr<Progress> progress_;
  std::chrono::steady_clock::time_point start_ = std::chrono::steady_clock::now();
  double last_loss_ = 0.0;
  int64_t planned_bytes_ = 0, peak_bytes_ = 0, trained_ = 0;
  int64_t host_peak_bytes_ = 0;                    ///< until the weights were loaded
  int64_t copied_bytes_ = 0, gathered_bytes_ = 0;  ///< of frozen weights a step, planned
};

}  // namespace moetune
