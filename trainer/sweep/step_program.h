// A step described once: its operations in their order. The sweep executes them, the weight store fetches for them, the
// plan walks them, pictures draw them.
//
//   const StepProgram program = step_program(blueprint, {.mode = StepMode::kTrain, .lowest_trained = lowest});
//   for (const StepOp& op : program) ...
//   slab_uses(blueprint, program);   // which packed weights that takes, in order
//
//   train:  await, embed · await, down l ... · await · [loads] · head of the trunk · [MTP: input, await, down,
//           head, up, input gradient, reduce] · turn, reduce · up l, reduce l ... · embedding gradient, reduce
//
// Every operation takes the whole local batch, or a group of it. Up stops below the lowest layer that trains.
//
// A stage of a pipeline has a program of its own: that of its layers, with receive and send in place of what other
// stages do. The local batch then goes through it in groups of documents, one way down after one way up (1F1B,
// Narayanan et al. 2021): stage s of P starts with P - 1 - s ways down, so that each holds the inputs of at most P - s
// groups, and of (G + P - 1) turns P - 1 are idle. A layer is awaited before the first group and reduced behind the
// last; of several groups behind what this one sends, so that the stages before do not stand for the sums one after the
// other.
//
//   stage 0 of 2, 3 groups:  down 0, down 1, up 0, down 2, up 1, up 2
//   stage 1 of 2:            down 0, up 0, down 1, up 1, down 2, up 2
#pragma once

#include <cstdint>
#include <optional>
#include <ostream>
#include <string>
#include <vector>

#include "lora/frozen_slab.h"
#include "moe/keep.h"
#include "moe/stage.h"

namespace moetune {

enum class StepMode {
  kLogits,    ///< way down; the head gives logits
  kEvaluate,  ///< way down; the head gives the loss
  kRoute,     ///< way down, that of the MTP module too, for the choice of experts alone
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
    kLoads,             ///< the loads that a balance loss takes are complete
    kUp,                ///< a block's backward pass, recomputed or kept
    kEmbedGradient,     ///< of the embedding, which trains
    kReduce,            ///< the layer's gradients are complete
    kReceive,           ///< the input of the stage's first block, from the stage before
    kSend,              ///< the output of its last block, to the next stage
    kReceiveGradient,   ///< of what was sent, from the next stage
    kSendGradient,      ///< of what was received, to the stage before
  };
  Kind kind = Kind::kEmbed;
  LayerId layer;
  /// of a block in training: what of its way down stays for its way up
  Keep keep = Keep::kNothing;
  int64_t group = 0;  ///< of the local batch's documents
  bool operator==(const StepOp&) const = default;
};
using StepProgram = std::vector<StepOp>;
/// "down layer 3", "up layer 3, attention kept", "down layer 3, group 2".
std::string to_string(const StepOp& op);
inline std::ostream& operator<<(std::ostream& out, const StepOp& op) { return out << to_string(op); }

/// Where a stage stands in its pipeline.
struct PipelinePlace {
  int64_t stage = 0, stages = 1;
  std::optional<Stage> layers;  ///< none: the whole model
  bool mtp = false;             ///< the last stage has the MTP module
};

/// The most groups whose way up has not come yet at any time.
int64_t groups_in_flight(const PipelinePlace& place, int64_t groups, bool whole_loads);

struct StepTraits {
  StepMode mode = StepMode::kTrain;
  bool mtp = false;                               ///< the MTP module takes part
  LayerId lowest_trained = LayerId::embedding();  ///< lowest layer with something that trains; the turn: none below
  KeptBlocks kept;                                ///< of the stage's blocks, MTP's included
  PipelinePlace pipeline;
  int64_t groups = 1;  ///< of documents, one after the other
  /// There is a balance loss of the whole step's loads: all groups go down before one goes up.
  bool whole_loads = false;
  /// The embedding trains on the first stage and on the last.
  bool shared_embedding = false;
  /// Something of what makes the input of the MTP module's block trains, whatever trains below it.
  bool mtp_input_trains = false;

  /// Whether a block of the trunk or the module goes up, and whether the gradient of its input is asked for.
  bool goes_up(LayerId block) const { return block >= lowest_trained || (block.is_mtp() && mtp_input_trains); }
  bool wants_input_gradient(LayerId block) const {
    return block > lowest_trained || (block.is_mtp() && mtp_input_trains);
  }
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
/// The blocks that the operations go through, one after the other: the order in which their trained weights are used.
std::vector<LayerId> block_uses(const StepProgram& program);

}  // namespace moetune
