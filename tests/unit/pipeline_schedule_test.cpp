// The turns of a pipeline against those of the papers and of docs/parallelism.md, with times made up by hand.
#include "trainer/plan/pipeline_schedule.h"

#include <algorithm>
#include <map>
#include <tuple>

#include <nlohmann/json.hpp>

#include "moe/families/family.h"
#include "tests/support/catch.h"
#include "tests/support/deepseek_v3_config.h"

using namespace moetune;

namespace {

using Kind = StepOp::Kind;

/// What the operations of a stage take, in seconds.
struct Seconds {
  double down = 1.0, up = 1.0, send = 0.0, reduce = 0.0;
  double update = 0.0;  ///< of its only block
};

/// Stages of one layer each.
struct Pipeline {
  std::vector<StepProgram> programs;
  std::vector<StepTime> times;

  Pipeline(const std::vector<Seconds>& stages, int64_t groups, bool whole_loads = false) {
    Blueprint blueprint = parse_blueprint(nlohmann::json::parse(kDeepseekV3Config), "config.json");
    const auto count = static_cast<int64_t>(stages.size());
    blueprint.layers.resize(count, blueprint.layers.back());
    for (int64_t stage = 0; stage < count; ++stage) {
      const PipelinePlace place{
          .stage = stage, .stages = count, .layers = stages_of(std::vector<int64_t>(count, 1)).at(stage)};
      programs.push_back(step_program(blueprint, {.pipeline = place, .groups = groups, .whole_loads = whole_loads}));
      times.push_back(alone(programs.back(), stages[stage]));
    }
  }

  PipelineSchedule schedule() const { return schedule_stages(programs, times); }

 private:
  /// The step of a stage that waits for nobody but its own optimizer.
  static StepTime alone(const StepProgram& program, const Seconds& seconds) {
    StepTime time;
    double now = 0.0;
    const auto span = [&](Lane lane, const StepOp& op, double length) {
      if (length > 0.0) time.spans.push_back({lane, to_string(op), now, now + length});
      if (lane == Lane::kCompute) now += length;
    };
    std::optional<LayerId> updated;
    for (const StepOp& op : program) {
      if (op.kind == Kind::kAwait && op.layer.is_block()) {
        updated = op.layer;
        now = std::max(now, seconds.update);
      }
      if (op.kind == Kind::kDown) span(Lane::kCompute, op, seconds.down);
      if (op.kind == Kind::kUp) span(Lane::kCompute, op, seconds.up);
      if (op.kind == Kind::kReduce && op.layer.is_block()) span(Lane::kCompute, op, seconds.reduce);
      if (op.kind == Kind::kSend || op.kind == Kind::kSendGradient) span(Lane::kNetwork, op, seconds.send);
    }
    time.seconds = now;
    if (updated && seconds.update > 0.0) {
      time.spans.push_back({Lane::kHost, "update " + to_string(*updated), now, now + seconds.update});
    }
    return time;
  }
};

/// By stage, way and group: when a pass begins.
using Begins = std::map<std::tuple<int64_t, bool, int64_t>, double>;
Begins begins(const PipelineSchedule& schedule) {
  Begins begins;
  for (const StagePass& pass : schedule.passes) begins[{pass.stage, pass.up, pass.group}] = pass.begin_s;
  return begins;
}

double idle_share(const PipelineSchedule& schedule, int64_t stage) {
  double busy = 0.0;
  for (const StagePass& pass : schedule.passes) busy += pass.stage == stage ? pass.end_s - pass.begin_s : 0.0;
  return 1.0 - busy / schedule.seconds;
}

}  // namespace

TEST_CASE("two stages take the turns of docs/parallelism.md", "[pipeline]") {
  const PipelineSchedule schedule = Pipeline({{}, {}}, 3).schedule();
  // turn  0 1 2 3 4 5 6 7
  //       d0 d1 . u0 d2 u1 . u2
  //       . d0 u0 d1 u1 d2 u2 .
  const Begins expected{{{0, false, 0}, 0}, {{0, false, 1}, 1}, {{0, true, 0}, 3},  {{0, false, 2}, 4},
                        {{0, true, 1}, 5},  {{0, true, 2}, 7},  {{1, false, 0}, 1}, {{1, true, 0}, 2},
                        {{1, false, 1}, 3}, {{1, true, 1}, 4},  {{1, false, 2}, 5}, {{1, true, 2}, 6}};
  CHECK((begins(schedule) == expected));
  CHECK(schedule.seconds == 8.0);
}

TEST_CASE("of G + P - 1 turns P - 1 are idle", "[pipeline]") {
  for (const int64_t stages : {1, 2, 3, 5}) {
    for (const int64_t groups : {1, 2, 4, 9}) {
      for (const bool whole_loads : {false, true}) {
        const std::vector<Seconds> alike(stages, Seconds{.down = 1.0, .up = 2.0});
        const PipelineSchedule schedule = Pipeline(alike, groups, whole_loads).schedule();
        const auto P = static_cast<double>(stages), G = static_cast<double>(groups);
        // With whole loads nothing goes up before all is down: the last stage waits for nobody, and it is no longer.
        CHECK(schedule.seconds == Approx(3.0 * (G + P - 1.0)));
        for (int64_t stage = 0; stage < stages; ++stage) {
          CHECK(idle_share(schedule, stage) == Approx((P - 1.0) / (G + P - 1.0)).margin(1e-12));
        }
      }
    }
  }
}

TEST_CASE("updates hide under the way down of the stages before", "[pipeline]") {
  const auto seconds = [](double first, double second) {
    return Pipeline({{.update = first}, {.update = second}}, 4).schedule();
  };
  // Without updates (4 + 1) x 2. Then max E (pipeline_cut.h): 3 and 3 - 1; 3 and 6 - 1; 0 and 1 - 1.
  CHECK(seconds(3, 3).seconds == Approx(10.0 + 3.0));
  CHECK(seconds(3, 6).seconds == Approx(10.0 + 5.0));
  CHECK(seconds(0, 1).seconds == Approx(10.0));
  const PipelineSchedule late = seconds(3, 6);
  const auto wait = [&](int64_t stage, int64_t group) {
    const auto found = std::find_if(late.passes.begin(), late.passes.end(), [&](const StagePass& pass) {
      return pass.stage == stage && pass.group == group && !pass.up;
    });
    return found->update_wait_s;
  };
  CHECK(wait(0, 0) == 3.0);
  CHECK(wait(1, 0) == 2.0);  // it comes at 4
  CHECK(wait(0, 1) == 0.0);
}

TEST_CASE("a stage goes on when what it waits for has arrived", "[pipeline]") {
  const PipelineSchedule schedule = Pipeline({{.send = 0.25}, {.send = 0.5}}, 1).schedule();
  const Begins begun = begins(schedule);
  CHECK(begun.at({1, false, 0}) == 1.25);
  CHECK(begun.at({0, true, 0}) == 1.25 + 2.0 + 0.5);
  CHECK(schedule.seconds == 4.75);
  CHECK(schedule.passes.front().arrives_s == 1.25);
}

TEST_CASE("sums of gradients hold up no other stage", "[pipeline]") {
  // Behind the last group each stage sums; only the first one's are behind all else.
  const PipelineSchedule schedule = Pipeline(std::vector<Seconds>(3, {.reduce = 0.5}), 4).schedule();
  CHECK(schedule.seconds == Approx(2.0 * (4 + 2) + 0.5));
}
