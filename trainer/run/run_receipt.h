// What a run was predicted to take beside what it took: printed at its end, and left in the run folder as receipt.json,
// from which the planner learns (trainer/plan/receipts.h).
//
//   RunReceipt receipt(recipe, run, documents, num_steps);
//   if (rank 0) log_info(receipt.prediction_text());
//   receipt.add(report);                                    // of every step
//   receipt.write(folder / "receipt.json", peaks);          // rank 0; peaks: receipt.peaks(mesh), collective
#pragma once

#include <filesystem>
#include <optional>
#include <string>
#include <vector>

#include "trainer/assemble.h"
#include "trainer/data/documents.h"
#include "trainer/plan/run_plan.h"
#include "trainer/run/step_report.h"

namespace moetune {

class RunReceipt {
 public:
  /// Predicts from the figures of run.machine, or of this kind of machine; nothing is predicted where there are none.
  RunReceipt(const Recipe& recipe, const Assembly& run, const Documents& documents, std::string version);

  /// "1.02 s a step (0.9 to 1.2 s), 26 min in all", or why nothing was predicted.
  std::string prediction_text() const;
  void add(const StepReport& report);
  /// Peak memory of each rank. Collective over the mesh.
  std::vector<int64_t> peaks() const;
  /// Writes the file, and returns what a person reads of it: lines of at most 100 columns, empty where nothing was
  /// predicted or no step was done.
  std::string write(const std::filesystem::path& file, const std::vector<int64_t>& peaks) const;

 private:
  /// Of a step, and what the rank that waited least waited for in it.
  struct Times {
    double step = 0.0, exchange = 0.0, tensor_axis = 0.0, weights = 0.0, stages = 0.0, optimizer = 0.0;
  };

  /// Of the steps that count: without the first ones, where there are enough.
  std::vector<Times> counted() const;

  const Recipe& recipe_;
  const Assembly& run_;
  std::string version_;
  std::optional<RunPlan> plan_;
  std::string note_;  ///< why there is none
  std::vector<Times> steps_;
};

}  // namespace moetune
