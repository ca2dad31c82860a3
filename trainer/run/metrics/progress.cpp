#include "trainer/run/metrics/progress.h"

#include <algorithm>
#include <cstdio>

#include "parallel/base/error.h"
#include "parallel/base/units.h"

namespace moetune {
namespace {

constexpr double kMeanOverSteps = 20.0;
constexpr const char* kWipeLine = "\r\x1b[K";

std::string number(const char* format, double value) {
  char text[64];
  std::snprintf(text, sizeof(text), format, value);
  return text;
}

}  // namespace

std::string progress_line(const StepFigures& figures, double left_s) {
  const std::string total = str(figures.num_steps), step = str(figures.step);
  std::string line =
      str("step ", std::string(total.size() - std::min(total.size(), step.size()), ' '), step, "/", total);
  line += number(" %3.0f%%", 100.0 * static_cast<double>(figures.step) /
                                 static_cast<double>(std::max<std::int64_t>(1, figures.num_steps)));
  line +=
      number("  loss %.4f", figures.loss) + number("  grad %.3g", figures.grad_norm) + number("  lr %.2e", figures.lr);
  line += str("  ", count_text(figures.tokens_per_s), " tok/s");
  if (figures.expert_max_over_mean) line += number("  experts %.2fx", *figures.expert_max_over_mean);
  if (figures.memory_bytes) line += "  mem " + bytes_text(*figures.memory_bytes);
  return line + str("  ", duration_text(figures.elapsed_s), "  left ", duration_text(left_s));
}

void Progress::step(const StepFigures& figures) {
  ++num_seen_;
  const double weight = 1.0 / std::clamp(static_cast<double>(num_seen_ - 1), 1.0, kMeanOverSteps);
  mean_step_s_ += weight * (figures.step_s - mean_step_s_);
  const double left_s = mean_step_s_ * static_cast<double>(figures.num_steps - figures.step);

  if (options_.terminal) {
    std::string line = progress_line(figures, left_s);
    // One column stays free: a line that fills the last one wraps on some terminals and could not be wiped.
    if (options_.columns > 0) line.resize(std::min(line.size(), static_cast<size_t>(options_.columns - 1)));
    out_ << kWipeLine << line << std::flush;
    drawn_ = true;
  } else if (num_seen_ == 1 || figures.step >= figures.num_steps ||
             figures.elapsed_s - printed_s_ >= options_.every_s ||
             figures.step - printed_step_ >= options_.every_steps) {
    out_ << progress_line(figures, left_s) << std::endl;
    printed_s_ = figures.elapsed_s;
    printed_step_ = figures.step;
  }
}

void Progress::make_room() {
  if (drawn_) out_ << kWipeLine << std::flush;
  drawn_ = false;
}

void Progress::finish() {
  if (drawn_) out_ << std::endl;
  drawn_ = false;
}

}  // namespace moetune
