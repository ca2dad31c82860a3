// A trace of some steps as this rank ran them, for ui.perfetto.dev and chrome://tracing: what the host did by the names
// of parallel/device/trace_range.h, the operations of LibTorch below them, and a GPU's kernels and copies.
//
//   StepTrace trace("runs/a/profile", traced_steps(3, step, num_steps), launch);
//   trace.before(step);  ... the step ...
//   if (trace.is_last(step)) trace.write();              // runs/a/profile/rank-0.json, and others of other ranks
//
// LibTorch's profiler (Kineto, CUPTI) records the thread that calls this, and what autograd does for it; other threads,
// AdamW's among them, are not in the trace. It changes no number, only the time that the steps take.
#pragma once

#include <cstdint>
#include <filesystem>

#include "parallel/comm/launch.h"

namespace moetune {

/// Steps first .. end - 1, from 0.
struct TracedSteps {
  int64_t first = 0;
  int64_t end = 0;
};

/// `count` steps of a run that goes from `begin` to `end`: from its third on, since the first ones allocate and choose
/// kernels; from its first on where it has too few for that, and then no more than there are.
TracedSteps traced_steps(int64_t count, int64_t begin, int64_t end);

/// Name of the file of a rank, and whether a file's name is one.
std::string trace_name(int64_t rank);
bool is_trace_name(const std::string& name);

class StepTrace {
 public:
  StepTrace(std::filesystem::path folder, TracedSteps steps, const Launch& launch)
      : folder_(std::move(folder)), steps_(steps), launch_(launch) {}
  /// A trace that goes on is dropped.
  ~StepTrace();
  StepTrace(const StepTrace&) = delete;
  StepTrace& operator=(const StepTrace&) = delete;

  /// Begins to record with the first of the steps. Its device is waited for.
  void before(int64_t step);
  /// Whether what is recorded ends behind this step: the last of the steps, or of the run.
  bool is_last(int64_t step, bool run_ends) const { return records_ && (step + 1 == steps_.end || run_ends); }
  /// Ends recording behind `last_step` and writes the file, whole or not at all; where that fails it warns: the run is
  /// worth more.
  void write(int64_t last_step);

 private:
  std::filesystem::path folder_;
  TracedSteps steps_;
  const Launch& launch_;
  bool records_ = false;
};

}  // namespace moetune
