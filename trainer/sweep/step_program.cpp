#include "trainer/sweep/step_program.h"

#include <algorithm>
#include <utility>

#include "parallel/base/error.h"

namespace moetune {
namespace {

using Kind = StepOp::Kind;

class Writer {
 public:
  Writer(const Blueprint& blueprint, const StepTraits& traits)
      : blueprint_(blueprint),
        traits_(traits),
        stage_(traits.pipeline.layers.value_or(Stage::whole(blueprint))),
        blocks_(stage_.blocks(blueprint, /*with_mtp=*/false)) {}

  StepProgram write() {
    const int64_t groups = traits_.groups;
    if (traits_.mode != StepMode::kTrain) {
      for (group_ = 0; group_ < groups; ++group_) forward();
      return std::move(program_);
    }
    // Ways down that come before the first way up, and then as many ahead of the ways up.
    const int64_t ahead = groups_in_flight(traits_.pipeline, groups, traits_.whole_loads) - 1;
    for (int64_t down = 0; down < groups + ahead; ++down) {
      group_ = down;
      if (down < groups) forward();
      group_ = down - ahead;
      if (group_ >= 0) backward();
    }
    return std::move(program_);
  }

 private:
  void add(Kind kind, LayerId layer) { program_.push_back({kind, layer, Keep::kNothing, group_}); }
  void add_block(Kind kind, LayerId layer) { program_.push_back({kind, layer, keep(layer), group_}); }
  /// What is done once for all groups.
  void await(LayerId layer) {
    if (group_ == 0) add(Kind::kAwait, layer);
  }
  /// Where gradients of all layers exist at a time anyway, the stage before is not kept waiting for their sums.
  void reduce(LayerId layer) {
    if (group_ < traits_.groups - 1) return;
    if (traits_.groups > 1 && sends_gradient()) held_back_.push_back(layer);
    else add(Kind::kReduce, layer);
  }
  bool sends_gradient() const { return !stage_.is_first() && traits_.lowest_trained < blocks_.front(); }

  Keep keep(LayerId layer) const {
    if (traits_.mode != StepMode::kTrain || !traits_.goes_up(layer)) return Keep::kNothing;
    return traits_.kept.of(blocks_.back().number() + (traits_.mtp ? 1 : 0) - layer.number());
  }

  void forward() {
    way_down();
    if (!stage_.is_last()) return add(Kind::kSend, blocks_.back());
    switch (traits_.mode) {
      case StepMode::kLogits:
      case StepMode::kEvaluate: add(Kind::kHead, blueprint_.turn()); break;
      case StepMode::kRoute:
        if (traits_.mtp) mtp_down();
        break;
      case StepMode::kTrain: break;
    }
  }

  void way_down() {
    if (stage_.is_first()) {
      await(LayerId::embedding());
      add(Kind::kEmbed, LayerId::embedding());
    } else {
      if (traits_.shared_embedding && stage_.is_last()) await(LayerId::embedding());
      add(Kind::kReceive, blocks_.front());
    }
    for (const LayerId layer : blocks_) {
      await(layer);
      add_block(Kind::kDown, layer);
    }
    if (stage_.is_last()) await(blueprint_.turn());
  }

  void backward() {
    // Before a stage waits for gradients: those that have them to send wait here for all stages.
    if (traits_.whole_loads && group_ == 0) add(Kind::kLoads, blueprint_.turn());
    if (stage_.is_last()) {
      add(Kind::kHead, blueprint_.turn());
      if (traits_.mtp) mtp();
      add(Kind::kTurn, blueprint_.turn());
      reduce(blueprint_.turn());
    } else if (traits_.lowest_trained <= blocks_.back()) {
      add(Kind::kReceiveGradient, blocks_.back());
    }
    way_up();
    if (sends_gradient()) add(Kind::kSendGradient, blocks_.front());
    if (traits_.shared_embedding && stage_.is_last() && !stage_.is_first()) reduce(LayerId::embedding());
    for (const LayerId layer : std::exchange(held_back_, {})) add(Kind::kReduce, layer);
  }

  void mtp_down() {
    add(Kind::kMtpInput, blueprint_.mtp());
    await(blueprint_.mtp());
    add_block(Kind::kDown, blueprint_.mtp());
  }

  void mtp() {
    const LayerId module = blueprint_.mtp();
    mtp_down();
    add(Kind::kHead, module);
    // Where nothing of the module's block and below it trains, nobody asks for gradients.
    if (traits_.goes_up(module)) add_block(Kind::kUp, module);
    if (traits_.wants_input_gradient(module)) add(Kind::kMtpInputGradient, module);
    reduce(module);
  }

  void way_up() {
    for (auto layer = blocks_.rbegin(); layer != blocks_.rend() && *layer >= traits_.lowest_trained; ++layer) {
      add_block(Kind::kUp, *layer);
      reduce(*layer);
    }
    if (stage_.is_first() && traits_.lowest_trained == LayerId::embedding()) {
      add(Kind::kEmbedGradient, LayerId::embedding());
      reduce(LayerId::embedding());
    }
  }

  const Blueprint& blueprint_;
  const StepTraits& traits_;
  const Stage stage_;
  const std::vector<LayerId> blocks_;
  int64_t group_ = 0;
  std::vector<LayerId> held_back_;  ///< whose sums wait for what is sent
  StepProgram program_;
};

}  // namespace

std::string to_string(const StepOp& op) {
  const auto word = [&] {
    switch (op.kind) {
      case Kind::kAwait: return "await";
      case Kind::kEmbed: return "embed";
      case Kind::kDown: return "down";
      case Kind::kHead: return "head";
      case Kind::kMtpInput: return "input of";
      case Kind::kMtpInputGradient: return "gradient of the input of";
      case Kind::kTurn: return "gather at the";
      case Kind::kLoads: return "loads at the";
      case Kind::kUp: return "up";
      case Kind::kEmbedGradient: return "gradient of the";
      case Kind::kReduce: return "reduce";
      case Kind::kReceive: return "receive the input of";
      case Kind::kSend: return "send the output of";
      case Kind::kReceiveGradient: return "receive the gradient of";
      case Kind::kSendGradient: return "send the gradient of";
    }
    throw InternalError("an operation of no kind");
  };
  const auto kept = [&] {
    switch (op.keep) {
      case Keep::kNothing: return "";
      case Keep::kAttention: return ", attention kept";
      case Keep::kExperts: return ", attention and experts kept";
      case Keep::kAll: return ", kept";
    }
    throw InternalError("an operation that keeps what has no name");
  };
  return str(word(), " ", op.layer, kept(), op.group > 0 ? str(", group ", op.group) : "");
}

int64_t groups_in_flight(const PipelinePlace& place, int64_t groups, bool whole_loads) {
  return whole_loads ? groups : std::min(groups, place.stages - place.stage);
}

StepProgram step_program(const Blueprint& blueprint, const StepTraits& traits) {
  return Writer(blueprint, traits).write();
}

std::vector<SlabUse> slab_uses(const Blueprint& blueprint, const StepOp& op) {
  switch (op.kind) {
    case Kind::kDown:
    case Kind::kUp:
      if (blueprint.has_experts(op.layer)) return {{SlabKind::kDense, op.layer}, {SlabKind::kExperts, op.layer}};
      return {{SlabKind::kDense, op.layer}};
    case Kind::kMtpInput:
    case Kind::kMtpInputGradient: return {{SlabKind::kDense, blueprint.turn()}};
    case Kind::kAwait:
    case Kind::kEmbed:
    case Kind::kHead:
    case Kind::kTurn:
    case Kind::kLoads:
    case Kind::kEmbedGradient:
    case Kind::kReduce:
    case Kind::kReceive:
    case Kind::kSend:
    case Kind::kReceiveGradient:
    case Kind::kSendGradient: break;
  }
  return {};
}

std::vector<SlabUse> slab_uses(const Blueprint& blueprint, const StepProgram& program) {
  std::vector<SlabUse> uses;
  for (const StepOp& op : program) {
    for (const SlabUse& use : slab_uses(blueprint, op)) uses.push_back(use);
  }
  return uses;
}

std::vector<LayerId> block_uses(const StepProgram& program) {
  std::vector<LayerId> blocks;
  for (const StepOp& op : program) {
    if (op.kind == Kind::kDown || op.kind == Kind::kUp) blocks.push_back(op.layer);
  }
  return blocks;
}

}  // namespace moetune
