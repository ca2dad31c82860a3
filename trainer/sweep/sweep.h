// The sweep: the whole local batch of a step through one layer before it touches the next, down for the forward pass,
// up again for the backward pass. It executes the operations of a step program (trainer/sweep/step_program.h): the only
// way a step runs, and the only place that uses and releases layers.
//
//   Sweep sweep(model, options, {.done = [&](LayerId layer) { gradients_of(layer)... }});
//   SweepResult result = sweep.train(batch, random);
//   SweepResult held_out = sweep.evaluate(batch);
//
//   down:  for layer l = 0 .. L-1:   use(l);  x_l+1 = block_l(x_l)            no graph is kept; x_l is kept
//   turn:  head and MTP, forward and backward in chunks of tokens             gives d x_L
//   up:    for layer l = L-1 .. 0:   use(l);  recompute block_l with a graph; d x_l+1 -> d x_l, layer's gradients
//
// What a step fetches and dequantises is therefore twice each layer, whatever its tokens, and the graph never spans
// more than a block. Routing is decided on the way down and replayed on the way up.
#pragma once

#include <functional>
#include <vector>

#include "moe/model.h"
#include "parallel/bytes/host_stash.h"
#include "parallel/watch/rank_progress.h"
#include "trainer/sweep/passage.h"

namespace moetune {

struct SweepOptions {
  /// the last this many blocks keep their graph from the way down instead of recomputing it
  int64_t keep_layers = 0;
  double mtp_weight = 0.0;       ///< of the MTP loss in the gradient
  BalanceSpec balance;           ///< of the trunk's expert layers
  bool stash_inputs = false;     ///< block inputs wait in host memory between the ways
  bool poison_released = false;  ///< tests: released dense weights become NaN
};

/// What is done as the ways come to a layer. Every rank calls them for the same layers in the same order.
struct LayerHooks {
  /// On a way down, before the layer's trained tensors are read: embedding, blocks, turn, MTP.
  std::function<void(LayerId)> before = [](LayerId) {};
  /// On the way up, when the layer's gradients are complete: MTP, turn, blocks, embedding last.
  std::function<void(LayerId)> done = [](LayerId) {};
  /// Between the ways: adds a tensor in place over the ranks that take other documents. For a balance loss whose loads
  /// are of the whole step.
  std::function<void(const at::Tensor&)> sum_over_documents = [](const at::Tensor&) {};
};

class Sweep {
 public:
  /// `progress`, if given, is told which layer is at work.
  Sweep(Model& model, const SweepOptions& options, LayerHooks hooks = {}, RankProgress* progress = nullptr);

  /// One step's forward and backward: gradients of (loss + mtp_weight * mtp_loss + balance_loss), each over its global
  /// divisor, are added to the parameters of this rank. Collective.
  SweepResult train(const StepBatch& batch, const StepRandom& random);
  /// Way down and head: no dropout, no MTP, no counts. Collective.
  SweepResult evaluate(const StepBatch& batch);
  /// Way down, and that of the MTP module: load_LE alone, its rows by MoE layer, the module's last. Collective.
  SweepResult route(const StepBatch& batch);
  /// Logits of the documents' rows in their order, [T, V]; for tests and exports of a few documents. Collective.
  /// What throws in one of these, a lack of memory, leaves the sweep fit for the next; gradients may be left behind.
  at::Tensor logits(const StepBatch& batch);

  /// How many of the last blocks keep their graph from here on.
  void keep_layers(int64_t count) { options_.keep_layers = count; }
  int64_t kept_layers() const { return options_.keep_layers; }
  const DequantCounters& dequantised() const { return dequantised_; }

 private:
  SweepResult run(const StepBatch& batch, StepMode mode, const StepRandom& random);
  void execute(const StepOp& op, Passage& step);
  /// The block's output, of rows in `x_TD`.
  at::Tensor down(const StepOp& op, const at::Tensor& x_TD, const Stream& stream, Passage& step);
  /// Gradient of the block's input; undefined where nothing below asks for it.
  at::Tensor up(const StepOp& op, const at::Tensor& d_y_TD, const Stream& stream, Passage& step);
  void head(const StepOp& op, Passage& step);
  void mtp_input(Passage& step);
  void mtp_input_gradient(Passage& step);
  void turn(Passage& step);

  /// The slabs of a program in the order in which it uses them.
  std::vector<FrozenSlab*> slabs_of(const StepProgram& program) const;
  const Stream& stream_of(LayerId layer, const StepBatch& batch) const {
    return layer.is_mtp() ? batch.mtp : batch.main;
  }
  Block& block(LayerId layer) const { return model_.blocks[layer.number()]; }
  /// Whether the block's input goes to the host: not where its graph stays, nor that of the last block, which is wanted
  /// at once.
  bool stashes(const StepOp& op) const;
  /// Whether the balance loss is on and counts this block: the trunk's expert layers, not the MTP module's.
  bool balances(LayerId layer) const;
  bool needs_input_gradient(LayerId layer) const { return layer > lowest_trained_; }

  Model& model_;
  SweepOptions options_;
  LayerHooks hooks_;
  RankProgress* progress_;
  Scratch scratch_;
  DequantCounters dequantised_;
  LayerId lowest_trained_;
  /// By block, as LayerId::number() counts them: what autograd gives gradients for.
  std::vector<std::vector<Parameter*>> mixing_parameters_;
  HostStash stash_;
};

}  // namespace moetune
