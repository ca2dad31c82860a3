// What a person sees of the steps while a run goes on: on a terminal one line that is rewritten in place, elsewhere (a
// file, a pipe, a batch system) plain lines now and then.
//
//   Progress progress(std::cout, {.terminal = isatty(1) != 0, .columns = 120});
//   progress.step({.step = 12, .num_steps = 500, .loss = 1.93, ...});
//   progress.make_room();   // before anything else is printed
//   progress.finish();
//
//   step 12/500   2%  loss 1.9300  grad 0.871  lr 2.00e-04  8.90k tok/s  experts 1.43x  mem 12.3 GiB  0:41  left 27:53
#pragma once

#include <cstdint>
#include <optional>
#include <ostream>
#include <string>

namespace moetune {

struct ProgressOptions {
  bool terminal = false;          ///< the output is a terminal: rewrite one line
  int columns = 0;                ///< width of the terminal, longer lines are cut; 0: not known, never cut
  double every_s = 10.0;          ///< plain lines: one when so many seconds have passed since the last,
  std::int64_t every_steps = 50;  ///< or so many steps, whichever comes first; the first and the last step always
};

/// The figures of one finished step.
struct StepFigures {
  std::int64_t step = 0;  ///< steps done, from 1
  std::int64_t num_steps = 0;
  double loss = 0.0;
  double grad_norm = 0.0;  ///< before clipping
  double lr = 0.0;
  double tokens_per_s = 0.0;                   ///< of the whole mesh
  std::optional<double> expert_max_over_mean;  ///< none: the model has no routed experts
  std::optional<std::int64_t> memory_bytes;    ///< of the fullest rank; none: not measured
  double step_s = 0.0;                         ///< how long this step took
  double elapsed_s = 0.0;                      ///< since the run (or its resumption) began
};

/// The line for a step, without its end. `left_s` is the time that the remaining steps are expected to take.
std::string progress_line(const StepFigures& figures, double left_s);

class Progress {
 public:
  /// `out` must outlive this object.
  Progress(std::ostream& out, const ProgressOptions& options) : out_(out), options_(options) {}

  /// Shows a step. The time left is the steps left times a running mean of step_s over about the last twenty steps, in
  /// which the first step of a run, slow from warming up, does not count once another is known.
  void step(const StepFigures& figures);
  /// Wipes the rewritten line, so that other output starts on a clean one; the next step draws it again.
  void make_room();
  /// Ends the rewritten line: what it showed last stays.
  void finish();

 private:
  std::ostream& out_;
  ProgressOptions options_;
  std::int64_t num_seen_ = 0, printed_step_ = 0;
  double mean_step_s_ = 0.0, printed_s_ = 0.0;
  bool drawn_ = false;
};

}  // namespace moetune
