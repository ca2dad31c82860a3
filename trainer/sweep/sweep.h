// The sweep: the whole local batch of a step through one layer before it touches the next, down for the forward pass,
// up again for the backward pass. The only way a step runs, and the only place that uses and releases layers.
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
// more than a block. Routing is decided on the way down and replayed on the way up. Up stops below the lowest thing
// that trains.
#pragma once

#include <functional>
#include <memory>
#include <vector>

#include "moe/balance.h"
#include "moe/model.h"
#include "parallel/bytes/host_stash.h"
#include "parallel/watch/rank_progress.h"
#include "trainer/data/step_batch.h"

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

/// Sums over this rank's documents, the same on every rank of a tensor axis; the caller adds them over the ranks that
/// take other documents. Scalars on the device, not waited for.
struct SweepResult {
  at::Tensor loss_sum;      ///< negative log-likelihood of the target tokens, each times its weight
  at::Tensor mtp_loss_sum;  ///< undefined without MTP
  at::Tensor balance_loss;  ///< these documents' part of the step's balance loss, weight included; undefined without
  at::Tensor loss_n;        ///< of evaluate(): of each target, in the order of the documents' rows
  at::Tensor load_LE;       ///< int64 [MoE layers, E]: tokens of these documents that each expert was chosen for
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
  at::Tensor logits(const StepBatch& batch);

  const DequantCounters& dequantised() const { return dequantised_; }
  /// Bytes of the block inputs held between down and up of the last train().
  int64_t kept_input_bytes() const { return kept_input_bytes_; }

 private:
  /// What the way down leaves for the way up.
  struct LayerState {
    at::Tensor x_TD;  ///< the block's input; undefined while it is stashed
    RoutingRecord routing;
    std::vector<at::Tensor> leaf_x;  ///< by slice, where the graph is kept
    std::vector<Mixed> mixed;
    std::unique_ptr<KeptExperts> experts;
  };
  enum class Mode { kEvaluate, kRoute, kTrain };

  at::Tensor down(LayerId layer, const at::Tensor& x_TD, const Stream& stream, PassContext& pass, Mode mode);
  at::Tensor up(LayerId layer, const at::Tensor& d_y_TD, const Stream& stream, PassContext& pass);
  at::Tensor turn(const at::Tensor& x_TD, const StepBatch& batch, PassContext& pass, SweepResult& result);
  at::Tensor way_down(const StepBatch& batch, PassContext& pass, Mode mode);
  /// load_LE of what the ways down have counted.
  void take_loads(SweepResult& result);
  /// The slabs of a pass in the order in which it uses them.
  std::vector<FrozenSlab*> uses(Mode mode) const;
  /// The trunk's blocks that the way up comes to, the last first.
  std::vector<LayerId> way_up() const;
  Block& block(LayerId layer) const { return model_.blocks[layer.number()]; }
  bool keeps_graph(LayerId layer) const;
  /// Whether the block's input goes to the host: not where its graph stays, nor that of the last block, which is wanted
  /// at once.
  bool stashes(LayerId layer) const;
  /// Whether the balance loss is on and counts this block: the trunk's expert layers, not the MTP module's.
  bool balances(LayerId layer) const;
  bool needs_input_gradient(LayerId layer) const { return layer > lowest_trained_; }

  Model& model_;
  SweepOptions options_;
  LayerHooks hooks_;
  RankProgress* progress_;
  const std::vector<LayerId> trunk_;
  Scratch scratch_;
  DequantCounters dequantised_;
  LayerId lowest_trained_;
  // By block, as LayerId::number() counts them: what autograd gives gradients for, what the ways leave, block inputs.
  std::vector<std::vector<Parameter*>> mixing_parameters_;
  std::vector<LayerState> states_;
  HostStash stash_;
  std::unique_ptr<StepBalance> balance_;  ///< of the step; null where there is no balance loss
  std::vector<at::Tensor> loads_;         ///< by MoE layer, in the order of the way down
  int64_t kept_input_bytes_ = 0;
};

}  // namespace moetune
