// The sweep: the whole local batch of a step through one layer before it touches the next, down for the forward pass,
// up again for the backward pass. It executes the operations of a step program (trainer/sweep/step_program.h): the only
// way a step runs, and the only place that uses and releases layers.
//
//   Sweep sweep(model, options, {.done = [&](LayerId layer) { gradients_of(layer)... }});
//   SweepResult result = sweep.train(batch, random);        // or of groups of documents, one after the other
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
#include <optional>
#include <span>
#include <vector>

#include "moe/model.h"
#include "parallel/bytes/host_stash.h"
#include "parallel/comm/stage_links.h"
#include "parallel/watch/rank_progress.h"
#include "trainer/sweep/layer_weights.h"
#include "trainer/sweep/passage.h"

namespace moetune {

struct SweepOptions {
  KeptBlocks kept;                  ///< which blocks keep what of the way down instead of computing it again
  double mtp_weight = 0.0;          ///< of the MTP loss in the gradient
  BalanceSpec balance;              ///< of the trunk's expert layers
  bool stash_inputs = false;        ///< block inputs wait in host memory between the ways
  bool poison_released = false;     ///< tests: released dense weights become NaN
  PipelinePlace pipeline;           ///< of the model where it is a stage
  StageLinks* links = nullptr;      ///< to its neighbours there
  LayerWeights* trained = nullptr;  ///< where weights that train lie; null: each in its own place
  /// The lowest layer with something that trains, of all stages; none: that of the model's parameters.
  std::optional<LayerId> lowest_trained;
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
  /// The same over the ranks that take these documents through other stages.
  std::function<void(const at::Tensor&)> sum_over_stages = [](const at::Tensor&) {};
};

class Sweep {
 public:
  /// `progress`, if given, is told which layer is at work.
  Sweep(Model& model, const SweepOptions& options, LayerHooks hooks = {}, RankProgress* progress = nullptr);

  /// One step's forward and backward: gradients of (loss + mtp_weight * mtp_loss + balance_loss), each over its global
  /// divisor, are added to the parameters of this rank. `groups` of the local batch go through the model one after the
  /// other, as many on every rank; in a pipeline several are under way. Losses are those of the last stage. Collective.
  SweepResult train(std::span<const StepBatch> groups, const StepRandom& random);
  SweepResult train(const StepBatch& batch, const StepRandom& random) { return train({&batch, 1}, random); }
  /// Way down and head: no dropout, no MTP, no counts. Collective.
  SweepResult evaluate(std::span<const StepBatch> groups);
  SweepResult evaluate(const StepBatch& batch) { return evaluate({&batch, 1}); }
  /// Way down, and that of the MTP module: load_LE and expert_LTK alone, by MoE layer, the module's last. Collective.
  SweepResult route(std::span<const StepBatch> groups);
  SweepResult route(const StepBatch& batch) { return route({&batch, 1}); }
  /// Logits of the documents' rows in their order, [T, V]; for tests and exports of a few documents. Collective.
  /// What throws in one of these, a lack of memory, leaves the sweep fit for the next; gradients may be left behind.
  at::Tensor logits(const StepBatch& batch);

  /// Which blocks keep what from here on.
  void keep(const KeptBlocks& kept) { options_.kept = kept; }
  const KeptBlocks& kept() const { return options_.kept; }
  const DequantCounters& dequantised() const { return dequantised_; }

 private:
  SweepResult run(std::span<const StepBatch> groups, StepMode mode, const StepRandom& random);
  /// One for each group.
  std::vector<Passage> passages(std::span<const StepBatch> groups, StepMode mode, const StepRandom& random,
                                StepTotals& totals);
  SweepResult result_of(std::vector<Passage>& passages, const StepTotals& totals, StepMode mode) const;
  void execute(const StepOp& op, Passage& step);
  /// The block's output, of rows in `x_TD`.
  at::Tensor down(const StepOp& op, const at::Tensor& x_TD, const Stream& stream, Passage& step);
  /// Gradient of the block's input; undefined where nothing below asks for it.
  at::Tensor up(const StepOp& op, const at::Tensor& d_y_TD, const Stream& stream, Passage& step);
  void head(const StepOp& op, Passage& step);
  /// Of the whole trunk.
  int64_t num_expert_layers() const;
  void mtp_input(Passage& step);
  void mtp_input_gradient(Passage& step);
  void turn(Passage& step);
  /// Rows of this rank in the group, from the stage before or the next one.
  at::Tensor receive(bool gradient, const Passage& step);

  /// Numbers in the store of the slabs of a program in the order in which it uses them, frozen ones first: each kind
  /// has lanes of its own.
  std::vector<int> slabs_of(const StepProgram& program) const;
  /// All weights of the block are at hand between these two, but for frozen experts.
  void use(Block& block, PassContext& pass);
  void release(Block& block, PassContext& pass);
  const Stream& stream_of(LayerId layer, const StepBatch& batch) const {
    return layer.is_mtp() ? batch.mtp : batch.main;
  }
  Block& block(LayerId layer) const { return model_.block(layer); }
  /// Whether the block's input goes to the host: not where its graph stays, nor that of the last block, which is wanted
  /// at once.
  bool stashes(const StepOp& op) const;
  /// Of a block input in host memory: a group takes the place of the one before that is no longer in flight.
  int64_t stash_key(const StepOp& op, const Passage& step) const {
    return op.group % step.totals.groups_in_flight * (model_.blueprint.num_layers() + 1) + op.layer.number();
  }
  /// Whether the balance loss is on and counts this block: the trunk's expert layers, not the MTP module's.
  bool balances(LayerId layer) const;
  bool needs_input_gradient(LayerId layer) const { return traits_.wants_input_gradient(layer); }

  Model& model_;
  SweepOptions options_;
  LayerHooks hooks_;
  RankProgress* progress_;
  Scratch scratch_;
  DequantCounters dequantised_;
  StepTraits traits_;  ///< of all its steps, but for their mode, groups and kept layers
  /// By block: what autograd gives gradients for.
  std::map<LayerId, std::vector<Parameter*>> mixing_parameters_;
  HostStash stash_;
};

}  // namespace moetune
