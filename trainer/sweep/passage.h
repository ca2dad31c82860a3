// What lives for the length of one passage of a group of documents through the model, down or down and up: the state of
// a step in flight. The sweep that executes it holds none.
#pragma once

#include <map>
#include <memory>
#include <vector>

#include "moe/balance.h"
#include "moe/block.h"
#include "moe/head.h"
#include "trainer/data/step_batch.h"
#include "trainer/sweep/step_program.h"

namespace moetune {

/// Sums over this rank's documents, the same on every rank of a tensor axis; the caller adds them over the ranks that
/// take other documents. Scalars on the device, not waited for.
struct SweepResult {
  at::Tensor loss_sum;      ///< negative log-likelihood of the target tokens, each times its weight
  at::Tensor mtp_loss_sum;  ///< undefined without MTP
  at::Tensor balance_loss;  ///< these documents' part of the step's balance loss, weight included; undefined without
  at::Tensor loss_n;        ///< of an evaluation: of each target, in the order of the documents' rows
  /// int64 [MoE layers, E]: tokens of these documents that each expert was chosen for; zeros for layers of other stages
  at::Tensor load_LE;
  /// Of a route, by MoE layer like load_LE: int16 [T, K], what each row of this rank chose, all groups joined;
  /// undefined for layers of other stages.
  std::vector<at::Tensor> expert_LTK;
  at::Tensor logits_TV;          ///< where logits were asked for: of the documents' rows in their order
  int64_t kept_input_bytes = 0;  ///< the most at a time of the block inputs held between down and up
};

/// What a block's way down leaves for its way up.
struct BlockState {
  at::Tensor x_TD;       ///< the block's input
  bool stashed = false;  ///< it waits in host memory instead
  RoutingRecord routing;
  // By slice: where all is kept, and where a part of mixing is.
  std::vector<at::Tensor> leaf_x;
  std::vector<Mixed> mixed;
  std::vector<KeptMixing> kept;
  std::unique_ptr<KeptExperts> experts;
};

/// What all groups of a step add to.
struct StepTotals {
  std::map<LayerId, at::Tensor> loads;                 ///< [E] of the MoE layers here
  std::map<LayerId, std::vector<at::Tensor>> choices;  ///< of a route: RoutingRecord::expert_TK of each group
  int64_t kept_input_bytes = 0, most_kept_input_bytes = 0;
  int64_t groups_in_flight = 1;  ///< at the most
};

struct Passage {
  Passage(const StepBatch& batch, StepMode mode, const PassContext& pass, StepTotals& totals)
      : batch(batch), mode(mode), pass(pass), totals(totals) {}

  const StepBatch& batch;
  StepMode mode;
  PassContext pass;
  StepTotals& totals;

  at::Tensor x_TD;                       ///< input of the next block on the way down
  at::Tensor d_x_TD;                     ///< gradient of the last one's output on the way up
  std::map<LayerId, BlockState> blocks;  ///< between their ways down and up
  /// Null where there is no balance loss; one for all groups where it takes the loads of the whole step.
  std::shared_ptr<StepBalance> balance;

  /// The trunk's output and its gradient, all ranks' rows, between the head and the turn.
  at::Tensor x_UD, d_x_UD;
  /// Of the MTP module: the graph of its input, which is the output of what it is made of; its block's output, and
  /// their gradients.
  struct {
    at::Tensor x_rows, embedding, input_TD, x_TD, d_x_TD;
  } mtp;
  /// Of these documents: losses and logits alone.
  SweepResult result;
};

}  // namespace moetune
