#include "trainer/plan/pipeline_schedule.h"

#include <algorithm>
#include <map>
#include <string>
#include <tuple>

#include "parallel/base/error.h"
#include "trainer/plan/planned_step.h"

namespace moetune {
namespace {

using Kind = StepOp::Kind;

bool receives(const StepOp& op) { return op.kind == Kind::kReceive || op.kind == Kind::kReceiveGradient; }
bool sends(const StepOp& op) { return op.kind == Kind::kSend || op.kind == Kind::kSendGradient; }

/// Whether an operation belongs to its group's way up: what the last stage does behind the trunk's blocks does too.
bool is_up(const StepOp& op) {
  switch (op.kind) {
    case Kind::kAwait:
    case Kind::kDown: return op.layer.is_mtp();
    case Kind::kEmbed:
    case Kind::kReceive:
    case Kind::kSend: return false;
    case Kind::kHead:
    case Kind::kMtpInput:
    case Kind::kMtpInputGradient:
    case Kind::kTurn:
    case Kind::kLoads:
    case Kind::kUp:
    case Kind::kEmbedGradient:
    case Kind::kReduce:
    case Kind::kReceiveGradient:
    case Kind::kSendGradient: return true;
  }
  throw InternalError("an operation of no kind");
}

struct TimedOp {
  StepOp op;
  double seconds = 0.0;  ///< on its way, of a send; else of the stage, a wait for weights before it included
  double ready_s = 0.0;  ///< of an await: when the update is done, from the step's begin on
};

struct TimedProgram {
  std::vector<TimedOp> ops;
  double end_s = 0.0;  ///< what follows the last of them
};

/// A program with the times that the spans of its stage alone have.
TimedProgram timed(const StepProgram& program, const StepTime& time) {
  struct Stretch {
    double begin_s = 0.0, end_s = 0.0;
  };
  std::map<std::string, Stretch> computing, network;
  std::map<std::string, double> updated;
  for (const LaneSpan& span : time.spans) {
    // Updates begin where a step ends; the step's own awaits wait for those of the step before, which are as long.
    if (span.lane == Lane::kHost) updated[span.name] = span.end_s - time.seconds;
    if (span.lane != Lane::kCompute && span.lane != Lane::kNetwork) continue;
    auto& of = span.lane == Lane::kCompute ? computing : network;
    const auto [found, is_new] = of.try_emplace(span.name, Stretch{span.begin_s, span.end_s});
    if (!is_new) found->second.end_s = std::max(found->second.end_s, span.end_s);
  }
  TimedProgram made;
  double now = 0.0;
  for (const StepOp& op : program) {
    TimedOp& timed = made.ops.emplace_back(TimedOp{.op = op});
    const std::string name = to_string(op);
    const auto computed = computing.find(name), travelled = network.find(name);
    if (op.kind == Kind::kAwait) {
      const auto found = updated.find(str("update ", op.layer));
      if (found == updated.end()) continue;
      timed.ready_s = found->second;
      now = std::max(now, timed.ready_s);
    } else if (sends(op)) {
      if (travelled != network.end()) timed.seconds = travelled->second.end_s - travelled->second.begin_s;
    } else if (computed != computing.end()) {
      double end = computed->second.end_s;
      // A block is done when its tokens are home.
      const bool is_block = op.kind == Kind::kDown || op.kind == Kind::kUp;
      if (is_block && travelled != network.end()) end = std::max(end, travelled->second.end_s);
      timed.seconds = std::max(0.0, end - now);
      now = std::max(now, end);
    }
  }
  made.end_s = std::max(0.0, time.seconds - now);
  return made;
}

/// All stages, each at its place in its program.
class Walk {
 public:
  Walk(const std::vector<StepProgram>& programs, const std::vector<StepTime>& times) {
    MT_CHECK(programs.size() == times.size(), programs.size(), " programs, ", times.size(), " times");
    for (size_t stage = 0; stage < programs.size(); ++stage) {
      stages_.push_back({timed(programs[stage], times[stage])});
      for (const StepOp& op : programs[stage]) loads_missing_ += op.kind == Kind::kLoads;
    }
  }

  PipelineSchedule run() {
    for (bool moved = true; moved;) {
      moved = false;
      for (size_t stage = 0; stage < stages_.size(); ++stage) {
        while (advance(static_cast<int64_t>(stage))) moved = true;
      }
    }
    PipelineSchedule schedule;
    for (const Place& place : stages_) {
      MT_CHECK(place.next == place.program.ops.size(), "a stage waits for what no stage sends");
      schedule.passes.insert(schedule.passes.end(), place.passes.begin(), place.passes.end());
      schedule.seconds = std::max(schedule.seconds, place.now_s + place.program.end_s);
    }
    return schedule;
  }

 private:
  struct Place {
    TimedProgram program;
    size_t next = 0;
    double now_s = 0.0;
    bool gave_loads = false;
    std::vector<StagePass> passes = {};
  };

  /// Does a stage's next operation, where what it needs is there.
  bool advance(int64_t stage) {
    Place& place = stages_[stage];
    if (place.next == place.program.ops.size()) return false;
    const auto& [op, seconds, ready_s] = place.program.ops[place.next];
    const bool up = is_up(op);
    double there_s = 0.0;
    if (receives(op)) {
      const auto found = arrived_.find({stage, op.group, up});
      if (found == arrived_.end()) return false;
      there_s = found->second;
    }
    if (op.kind == Kind::kLoads) {
      // Summed over the stages: none goes on before all have come.
      if (!place.gave_loads) {
        place.gave_loads = true;
        --loads_missing_;
        loads_s_ = std::max(loads_s_, place.now_s);
      }
      if (loads_missing_ > 0) return false;
      there_s = loads_s_;
    }
    if (place.passes.empty() || place.passes.back().group != op.group || place.passes.back().up != up) {
      place.passes.push_back(
          {.stage = stage, .group = op.group, .up = up, .begin_s = place.now_s, .end_s = place.now_s});
    }
    StagePass& pass = place.passes.back();
    if (receives(op) || op.kind == Kind::kLoads) {
      place.now_s = std::max(place.now_s, there_s);
      pass.begin_s = place.now_s;
      pass.update_wait_s = 0.0;
    } else if (op.kind == Kind::kAwait) {
      pass.update_wait_s += std::max(0.0, ready_s - place.now_s);
      place.now_s = std::max(place.now_s, ready_s);
    } else if (!sends(op)) {
      place.now_s += seconds;
    }
    pass.end_s = place.now_s;
    if (sends(op)) {
      pass.arrives_s = place.now_s + seconds;
      arrived_[{stage + (up ? -1 : 1), op.group, up}] = pass.arrives_s;
    }
    ++place.next;
    return true;
  }

  std::vector<Place> stages_;
  std::map<std::tuple<int64_t, int64_t, bool>, double> arrived_;  ///< at a stage, of a group, on its way up
  int64_t loads_missing_ = 0;
  double loads_s_ = 0.0;
};

}  // namespace

PipelineSchedule schedule_stages(const std::vector<StepProgram>& programs, const std::vector<StepTime>& times) {
  return Walk(programs, times).run();
}

PipelineSchedule plan_schedule(const Blueprint& blueprint, const Recipe& recipe, const MeshShape& mesh,
                               const std::vector<MemoryPlan>& stages, const KernelRates& rates, const StepLoad& load) {
  std::vector<StepProgram> programs;
  std::vector<StepTime> times;
  for (const MemoryPlan& memory : stages) {
    programs.push_back(
        planned_step(blueprint, recipe, memory.kept, memory.pipeline.place(memory.stage), memory.pipeline.groups));
    times.push_back(step_time(blueprint, recipe, mesh, {memory}, rates, load));
  }
  return schedule_stages(programs, times);
}

}  // namespace moetune
