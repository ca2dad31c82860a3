// A step described once: its operations in their order. The sweep executes them, the weight store fetches for them, the
// plan walks them, pictures draw them.
//
//   const StepProgram program = step_program(blueprint, {.mode = StepMode::kTrain, .lowest_trained = lowest});
//   for (const StepOp& op : program) ...
//   slab_uses(blueprint, program);   // which packed weights that takes, in order
//
//   train:  await, embed · await, down l ... · await, head of the trunk · [MTP: input, await, down, head, up, input
//           gradient, reduce] · turn, reduce · up l, reduce l ... · embedding gradient, reduce
//
// Every operation takes the whole local batch. Up stops below the lowest layer that trains.
#pragma once

#include <cstdint>
#include <ostream>
#include <string>
#include <vector>

#include "lora/frozen_slab.h"
#include "moe/blueprint.h"

namespace moetune {

enum class StepMode {
  kLogits,    ///< way down; the head gives logits
  kEvaluate,  ///< way down; the head gives the loss
  kRoute,     ///< way down, that of the MTP module too, for the loads of experts alone
  kTrain,
};

struct StepOp {
  enum class Kind {
    kAwait,             ///< what the layer's last update still has to do, before its trained tensors are read
    kEmbed,             ///< tokens -> x
    kDown,              ///< a block's forward pass
    kHead,              ///< logits or loss of the trunk (the turn's) or of the MTP module; in training d x too
    kMtpInput,          ///< the trunk's output and the next tokens -> the module's block input
    kMtpInputGradient,  ///< its backward pass, which adds to the gradient of the trunk's output
    kTurn,              ///< that gradient is complete
    kUp,                ///< a block's backward pass, recomputed or kept
    kEmbedGradient,     ///< of the embedding, which trains
    kReduce,            ///< the layer's gradients are complete
  };
  Kind kind = Kind::kEmbed;
  LayerId layer;
  /// of a block in training: its graph stays from down to up
  bool keeps = false;
  bool operator==(const StepOp&) const = default;
};
using StepProgram = std::vector<StepOp>;
/// "down layer 3", "up layer 3, kept".
std::string to_string(const StepOp& op);
inline std::ostream& operator<<(std::ostream& out, const StepOp& op) { return out << to_string(op); }

struct StepTraits {
  StepMode mode = StepMode::kTrain;
  bool mtp = false;                               ///< the MTP module takes part
  LayerId lowest_trained = LayerId::embedding();  ///< lowest layer with something that trains; the turn: none below
  int64_t keep_layers = 0;                        ///< the last this many blocks keep their graph, MTP's included
};

StepProgram step_program(const Blueprint& blueprint, const StepTraits& traits);

/// The packed weights of one kind that an operation needs.
struct SlabUse {
  SlabKind kind = SlabKind::kDense;
  LayerId layer;
};
/// Those of one operation, and of all in their order; a run whose weights train has none of them.
std::vector<SlabUse> slab_uses(const Blueprint& blueprint, const StepOp& op);
std::vector<SlabUse> slab_uses(const Blueprint& blueprint, const StepProgram& program);

}  // namespace moetune
