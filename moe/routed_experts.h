// The routed experts of one layer: rows go to the ranks of their experts, through their MLPs (moe/expert_mlp.h), and
// back as a weighted sum.
//
//   RoutingRecord record = experts.route(expert_TK);  // way down: the choice and its exchange, kept
//   // rows travel; the shared expert computes meanwhile
//   Dispatch sent = experts.send(record, {z_TD, weight_TK, token_T}, pass);
//   at::Tensor routed_TD = experts.forward(record, std::move(sent), pass);
//   ...
//   // way up: recomputes, never re-routes
//   Dispatch again = experts.send(record, {z_TD, weight_TK, token_T, d_routed_TD}, pass);
//   ExpertGradients d = experts.backward(record, std::move(again), pass);
//
// Forward and backward are plain functions over the whole local batch. Experts go through in chunks: a chunk's weights
// are made dense once and serve every row, on the way up for recomputation and input gradient alike. The gradient of a
// routing weight is found where the expert is: K numbers a token come home.
//
// Ranks of an axis may share each expert: maps to hidden features cut by outputs, down by inputs. Then they go through
// all of this together, with the U rows of all of them and their own features of the hidden activation: rows are
// gathered before they go out, and output, d z and d weight, sums over the features, are completed where a row belongs.
// A bias of `down` counts at the first of them. On an axis of one rank U is T and nothing is gathered.
#pragma once

#include <memory>
#include <vector>

#include "moe/cost.h"
#include "moe/expert_mlp.h"
#include "moe/pass_context.h"
#include "parallel/comm/tensor_axis.h"
#include "parallel/comm/token_exchange.h"

namespace moetune {

/// Which experts of a layer this rank holds.
struct ExpertPlacement {
  int64_t first = 0;
  int64_t count = 0;
  int64_t total = 0;
};

/// The routing of one layer, decided on the way down and replayed on the way up: 2 K bytes a token and 4 bytes a row
/// sent.
struct RoutingRecord {
  at::Tensor expert_UK;  ///< int16, of all rows that go out from here
  at::Tensor expert_TK;  ///< of this rank's own, a view
  std::vector<ExchangeRound> rounds;
};

/// What the ranks of a layer's experts need of each token.
struct RoutedInputs {
  at::Tensor z_TD;
  at::Tensor weight_TK;
  at::Tensor token_T;      ///< global numbers of the tokens; sent under dropout only
  at::Tensor d_routed_TD;  ///< gradient of the routed sum, on the way up; undefined on the way down
};

/// What travels of each row, by name: of the U rows that go out from here, or of the Y rows that came. What is
/// undefined stays at home.
struct RowFields {
  at::Tensor z;         ///< [., D]
  at::Tensor weight;    ///< [., K]
  at::Tensor expert;    ///< [., K], int16
  at::Tensor token;     ///< [., 1], global numbers, under dropout
  at::Tensor d_routed;  ///< [., D], on the way up; of kept rows this alone

  /// Those that travel, in the order in which the exchange has them.
  std::vector<at::Tensor> tensors() const;
  /// The same fields of other rows: `tensors` is what came of tensors().
  RowFields of_received(std::vector<at::Tensor> tensors) const;
};

/// Inputs on their way: those of the first round already, those of later rounds when their turn comes.
struct Dispatch {
  RowFields rows_U;
  RowsUnderway first;
};

/// Intermediates of a layer that keeps them instead of recomputing.
struct KeptExperts {
  struct Round {
    at::Tensor row_X;   ///< received row of each routed row, grouped by expert
    at::Tensor slot_X;  ///< its place among the K of that row, as a flat index into [Y, K]
    at::Tensor y_YD, weight_X, token_X;
    at::Tensor place_YK;              ///< of each of the K slots of a received row, on GPUs; row_gather.h
    std::vector<at::Tensor> gate_up;  ///< [X, 2F] by chunk; empty: recompute
  };
  std::vector<Round> rounds;
};

struct ExpertGradients {
  at::Tensor d_z_TD;
  at::Tensor d_weight_TK;
};

class RoutedExperts {
 public:
  RoutedExperts(ExpertMlp mlp, ExpertPlacement placement, int64_t chunk_experts, TokenExchange& exchange,
                const TensorAxis& axis = {});

  /// Fixes the exchange of expert_TK (int64; the total number of experts for a row that goes nowhere). Collective over
  /// the expert group and the axis, as all that follows.
  RoutingRecord route(const at::Tensor& expert_TK) const;
  /// Begins to send the first round of inputs, beside what the current stream does from here on. `kept`: what the way
  /// down kept, if it did; then d_routed alone travels. Collective.
  Dispatch send(const RoutingRecord& record, const RoutedInputs& inputs, const PassContext& pass,
                const KeptExperts* kept = nullptr) const;
  /// sum over the chosen experts of weight * expert(z), or of expert(weight * z): [T, D]. Collective. `kept` receives
  /// intermediates where it is not null.
  at::Tensor forward(const RoutingRecord& record, Dispatch sent, PassContext& pass, KeptExperts* kept = nullptr) const;
  /// Gradients in z and in the weights; those of adapters (or trained weights) are added to their parameters. `kept` as
  /// send() had it. Collective.
  ExpertGradients backward(const RoutingRecord& record, Dispatch sent, PassContext& pass,
                           const KeptExperts* kept = nullptr);

  const ExpertPlacement& placement() const { return placement_; }
  std::vector<GroupedLinear*> linears() const { return mlp_.linears(); }
  /// Elements that a pass takes from the scratch.
  int64_t scratch_elements() const;

 private:
  std::vector<ExpertChunk> chunks(const std::vector<int64_t>& rows_of_expert, at::Device device) const;
  at::Tensor gathered(const at::Tensor& rows_TC) const {
    return axis_.gather_rows(rows_TC, axis_.size() * rows_TC.size(0));
  }
  /// What a round brings here of rows_U.
  RowFields receive(const RoutingRecord& record, size_t index, Dispatch& sent) const;
  /// Its rows by local expert.
  KeptExperts::Round grouped(const ExchangeRound& round, const RowFields& rows_Y) const;

  ExpertMlp mlp_;
  ExpertPlacement placement_;
  int64_t chunk_experts_;
  TokenExchange& exchange_;
  TensorAxis axis_;
};

/// Of the routed experts of a layer, in bytes of memory and in work.
struct ExpertsCost {
  // A row of the local batch, of which K go to experts; all of one rank's experts chosen evenly.
  Work forward, backward;
  Work again;  ///< what the way up computes of the forward pass again where nothing was kept: gate and up
  /// a row that this rank's experts received: copies of it and of gradients, and what orders its K routed rows
  int64_t received = 0;
  int64_t chunk = 0;  ///< a routed row of the chunk in flight
  int64_t kept = 0;   ///< a routed row of a layer that keeps its intermediates
  // A received row of one: beside its mixing, which may keep the row itself, and where mixing is not kept.
  int64_t kept_received = 0, kept_received_alone = 0;
};
/// `maps`: all of the block's.
ExpertsCost routed_experts_cost(const Blueprint& blueprint, const std::vector<LinearMap>& maps,
                                const PassTraits& traits);
/// Scratch elements that each expert's adapters take beside its dense weights where they are folded into these
/// (lora/grouped_maps.h).
int64_t folded_scratch_elements(const std::vector<LinearMap>& maps, const PassTraits& traits);

/// Experts, or parts of experts, whose dense weights are in use at a time: as many of `local_experts` as fit into
/// `chunk_bytes`, at least one. The same on all ranks that share experts.
int64_t experts_at_a_time(const Blueprint& blueprint, at::ScalarType compute, int64_t chunk_bytes,
                          int64_t local_experts, const TensorParts& parts);

}  // namespace moetune
