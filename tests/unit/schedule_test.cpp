#include "tests/support/catch.h"

#include "trainer/update/schedule.h"

using namespace moetune;

namespace {

double factor(ScheduleKind kind, std::int64_t warmup, double min_ratio, std::int64_t step, std::int64_t num_steps) {
  ScheduleRecipe schedule;
  schedule.kind = kind;
  schedule.warmup_steps = warmup;
  schedule.min_lr_ratio = min_ratio;
  return learning_rate_factor(schedule, step, num_steps);
}

constexpr double kTight = 1e-14;

}  // namespace

// Expected values: get_last_lr() of transformers 5.17's schedules on an optimizer with lr 1, num_warmup_steps 10,
// num_training_steps 100.
TEST_CASE("schedules equal those of transformers after the warm-up", "[schedule]") {
  const auto check = [](ScheduleKind kind, double min_ratio, std::int64_t step, double expected) {
    CHECK(factor(kind, 10, min_ratio, step, 100) == Approx(expected).epsilon(kTight).margin(kTight));
  };
  check(ScheduleKind::kCosine, 0.0, 10, 1.0);
  check(ScheduleKind::kCosine, 0.0, 11, 0.9996954135095479);
  check(ScheduleKind::kCosine, 0.0, 37, 0.7938926261462366);
  check(ScheduleKind::kCosine, 0.0, 55, 0.5);
  check(ScheduleKind::kCosine, 0.0, 99, 0.00030458649045211894);
  check(ScheduleKind::kCosine, 0.0, 100, 0.0);
  check(ScheduleKind::kCosine, 0.1, 11, 0.9997258721585931);
  check(ScheduleKind::kCosine, 0.1, 37, 0.8145033635316129);
  check(ScheduleKind::kCosine, 0.1, 99, 0.10027412784140691);
  check(ScheduleKind::kLinear, 0.0, 11, 0.9888888888888889);
  check(ScheduleKind::kLinear, 0.0, 37, 0.7);
  check(ScheduleKind::kLinear, 0.0, 99, 0.011111111111111112);
  check(ScheduleKind::kConstant, 0.0, 10, 1.0);
  check(ScheduleKind::kConstant, 0.3, 99, 1.0);
  // num_warmup_steps 0, num_training_steps 7
  CHECK(factor(ScheduleKind::kCosine, 0, 0.0, 0, 7) == 1.0);
  CHECK(factor(ScheduleKind::kCosine, 0, 0.0, 1, 7) == Approx(0.9504844339512095).epsilon(kTight));
  CHECK(factor(ScheduleKind::kCosine, 0, 0.0, 6, 7) == Approx(0.04951556604879048).epsilon(kTight));
}

TEST_CASE("the warm-up begins above zero and ends at one", "[schedule]") {
  for (const auto kind : {ScheduleKind::kConstant, ScheduleKind::kLinear, ScheduleKind::kCosine}) {
    CHECK(factor(kind, 10, 0.0, 0, 100) == 0.1);
    CHECK(factor(kind, 10, 0.5, 4, 100) == 0.5);
    CHECK(factor(kind, 10, 0.0, 9, 100) == 1.0);
    CHECK(factor(kind, 5, 0.0, 4, 5) == 1.0);  // nothing but warm-up
  }
}

TEST_CASE("past its end a schedule stays at its minimum", "[schedule]") {
  CHECK(factor(ScheduleKind::kCosine, 10, 0.25, 150, 100) == 0.25);
  CHECK(factor(ScheduleKind::kLinear, 10, 0.25, 150, 100) == 0.25);
}
