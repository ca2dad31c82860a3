// The learning rate's course over a run: warm-up, then constant, or down along a line or half a cosine.
//
//   const double lr = recipe.train.optimizer.lr * learning_rate_factor(recipe.train.schedule, step, num_steps);
//
// With W warm-up steps, N steps in all, m = min_lr_ratio and s the step from 0:
//   s < W:    factor = (s + 1) / W
//   s >= W:   p = min(1, (s - W) / (N - W));  factor = m + (1 - m) * f(p)
//             constant f = 1 (whatever m),   linear f = 1 - p,   cosine f = (1 + cos(pi * p)) / 2
// From step W on these are transformers' get_constant/linear/cosine_schedule_with_warmup, and with m > 0
// get_cosine_with_min_lr_schedule_with_warmup. In the warm-up transformers uses s / W, which wastes step 0 on a
// learning rate of zero; here it is one step ahead and reaches 1 at step W - 1.
#pragma once

#include <cstdint>

#include "trainer/recipe/recipe.h"

namespace moetune {

/// What the recipe's learning rate is multiplied by in a step (from 0) of a run of num_steps: within [0, 1].
double learning_rate_factor(const ScheduleRecipe& schedule, std::int64_t step, std::int64_t num_steps);

}  // namespace moetune
