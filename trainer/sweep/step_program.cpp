#include "trainer/sweep/step_program.h"

#include "parallel/base/error.h"

namespace moetune {
namespace {

using Kind = StepOp::Kind;

class Writer {
 public:
  Writer(const Blueprint& blueprint, const StepTraits& traits)
      : blueprint_(blueprint), traits_(traits), trunk_(blueprint.blocks(/*with_mtp=*/false)) {}

  StepProgram write() {
    way_down();
    switch (traits_.mode) {
      case StepMode::kLogits:
      case StepMode::kEvaluate: add(Kind::kHead, blueprint_.turn()); break;
      case StepMode::kRoute:
        if (traits_.mtp) mtp_down();
        break;
      case StepMode::kTrain:
        add(Kind::kHead, blueprint_.turn());
        if (traits_.mtp) mtp();
        add(Kind::kTurn, blueprint_.turn());
        add(Kind::kReduce, blueprint_.turn());
        way_up();
        break;
    }
    return std::move(program_);
  }

 private:
  void add(Kind kind, LayerId layer) { program_.push_back({kind, layer}); }
  void add_block(Kind kind, LayerId layer) { program_.push_back({kind, layer, keeps(layer)}); }

  bool keeps(LayerId layer) const {
    const int64_t blocks = blueprint_.num_layers() + (traits_.mtp ? 1 : 0);
    return traits_.mode == StepMode::kTrain && layer.number() >= blocks - traits_.keep_layers &&
           layer >= traits_.lowest_trained;
  }

  void way_down() {
    add(Kind::kAwait, LayerId::embedding());
    add(Kind::kEmbed, LayerId::embedding());
    for (const LayerId layer : trunk_) {
      add(Kind::kAwait, layer);
      add_block(Kind::kDown, layer);
    }
    add(Kind::kAwait, blueprint_.turn());
  }

  void mtp_down() {
    add(Kind::kMtpInput, blueprint_.mtp());
    add(Kind::kAwait, blueprint_.mtp());
    add_block(Kind::kDown, blueprint_.mtp());
  }

  void mtp() {
    const LayerId module = blueprint_.mtp();
    mtp_down();
    add(Kind::kHead, module);
    add_block(Kind::kUp, module);
    // Where nothing below the module's block trains, nobody asks for the gradient of its input.
    if (module > traits_.lowest_trained) add(Kind::kMtpInputGradient, module);
    add(Kind::kReduce, module);
  }

  void way_up() {
    for (auto layer = trunk_.rbegin(); layer != trunk_.rend() && *layer >= traits_.lowest_trained; ++layer) {
      add_block(Kind::kUp, *layer);
      add(Kind::kReduce, *layer);
    }
    if (traits_.lowest_trained == LayerId::embedding()) {
      add(Kind::kEmbedGradient, LayerId::embedding());
      add(Kind::kReduce, LayerId::embedding());
    }
  }

  const Blueprint& blueprint_;
  const StepTraits& traits_;
  const std::vector<LayerId> trunk_;
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
      case Kind::kUp: return "up";
      case Kind::kEmbedGradient: return "gradient of the";
      case Kind::kReduce: return "reduce";
    }
    throw InternalError("an operation of no kind");
  };
  return str(word(), " ", op.layer, op.keeps ? ", kept" : "");
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
    case Kind::kEmbedGradient:
    case Kind::kReduce: break;
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

}  // namespace moetune
