#include "trainer/update/schedule.h"

#include <algorithm>
#include <cmath>
#include <numbers>

namespace moetune {

double learning_rate_factor(const ScheduleRecipe& schedule, std::int64_t step, std::int64_t num_steps) {
  const std::int64_t warmup = schedule.warmup_steps;
  if (step < warmup) return static_cast<double>(step + 1) / static_cast<double>(warmup);
  if (schedule.kind == ScheduleKind::kConstant) return 1.0;
  const auto decay_steps = static_cast<double>(std::max<std::int64_t>(1, num_steps - warmup));
  const double progress = std::min(1.0, static_cast<double>(step - warmup) / decay_steps);
  const double falling =
      schedule.kind == ScheduleKind::kLinear ? 1.0 - progress : 0.5 * (1.0 + std::cos(std::numbers::pi * progress));
  return schedule.min_lr_ratio + (1.0 - schedule.min_lr_ratio) * falling;
}

}  // namespace moetune
