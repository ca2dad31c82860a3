// One decoder block in the two stages that the sweep walks through: mixing, slice by slice, and the routed experts,
// once over all.
//
//   block.use(pass);                           // dense forms of this layer's frozen maps
//   Mixed mixed = block.mix(x_TD, slice, angles, expert_TK, /*balance=*/false, pass);
//   ... sent = block.experts()->send(...) ...  // over all slices together: rows leave for their experts
//   block.add_mlp(mixed, slice, pass);         // dense MLP, or the shared expert while they travel
//   block.use_experts();
//   ... routed = block.experts()->forward(...) ...
//   block.release_experts();
//   x_next = mixed.residual_TD + routed
//   block.release(pass);
#pragma once

#include <memory>
#include <optional>

#include "lora/frozen_slab.h"
#include "moe/attention/attention.h"
#include "moe/cost.h"
#include "moe/keep.h"
#include "moe/routed_experts.h"
#include "moe/router.h"
#include "moe/swiglu_mlp.h"

namespace moetune {

/// What mixing a slice gives; differentiable when computed with grad mode on.
struct Mixed {
  at::Tensor residual_TD;  ///< x + attention; with add_mlp() the block's output but for the routed experts
  at::Tensor mlp_TD;       ///< behind add_mlp() for the graph alone: what it would have added; undefined elsewhere
  at::Tensor z_TD;         ///< input of MLP and routed experts; undefined behind add_mlp() in a dense block
  at::Tensor weight_TK;    ///< routing weights in compute dtype; undefined in a dense block
  at::Tensor expert_TK;    ///< int64, the experts they are of; E, which is no expert, for padding
  /// the router's scores and what a balance loss takes means of (moe/balance.h); undefined unless asked for
  at::Tensor score_TE, probability_TE;
};

/// The parts of a block; made by moe/model.
struct BlockParts {
  LayerId layer;
  at::Tensor input_norm, post_attention_norm;
  std::unique_ptr<Attention> attention;
  std::unique_ptr<SwigluMlp> mlp;          ///< dense MLP, or the shared expert (null where there is none)
  std::unique_ptr<Router> router;          ///< null in a dense block
  std::unique_ptr<RoutedExperts> experts;  ///< null in a dense block
  FrozenSlab* dense_slab = nullptr;        ///< of the frozen maps of mixing; null where all train
  FrozenSlab* expert_slab = nullptr;       ///< likewise; null in a dense block too
};

class Block {
 public:
  /// `eps`: of its two norms.
  Block(BlockParts parts, double eps) : parts_(std::move(parts)), eps_(eps) {}

  /// Makes the frozen maps of mixing dense for one pass; release() gives the scratch back.
  void use(PassContext& pass);
  void release(PassContext& pass);
  /// The experts' packed weights are at hand between these two; they come later and may go earlier than those of
  /// mixing.
  void use_experts();
  void release_experts();
  /// Of the maps of mixing, or of the experts; null: there is none.
  FrozenSlab* slab(SlabKind kind) const { return kind == SlabKind::kDense ? parts_.dense_slab : parts_.expert_slab; }

  /// Mixing of one slice up to the choice of experts. `replayed_TK` (int64): the choice of the way down, obeyed on the
  /// way up; undefined: the experts are chosen here. `balance`: give what a balance loss needs. `kept`: null, or what
  /// one pass fills and the next takes from there. Collective over the tensor axis, its backward pass too.
  Mixed mix(const at::Tensor& x_TD, const Slice& slice, const RopeAngles& angles, const at::Tensor& replayed_TK,
            bool balance, const PassContext& pass, KeptMixing* kept = nullptr) const;
  /// Adds to the residual the slice's dense MLP or shared expert; where its graph alone is wanted, it stands beside the
  /// residual. Collective over the tensor axis, its backward pass too.
  void add_mlp(Mixed& mixed, const Slice& slice, const PassContext& pass, Wanted wanted = Wanted::kNumbers) const;

  LayerId layer() const { return parts_.layer; }
  bool is_moe() const { return parts_.experts != nullptr; }
  RoutedExperts* experts() const { return parts_.experts.get(); }
  Router* router() const { return parts_.router.get(); }
  bool has_correction_bias() const { return is_moe() && router()->bias().defined(); }
  std::vector<Linear*> linears() const;
  /// Elements that one pass takes from the scratch at the most.
  int64_t scratch_elements() const;

 private:
  BlockParts parts_;
  double eps_;
};

/// What one pass through a block takes, from shapes alone. On the way up, of T rows in slices of at most S with Y
/// received and X routed ones in the largest chunk, it holds beside its input
///
///   T * saved + max(S * mixing, Y * experts.received + X * experts.chunk)
///
/// and what passes between its two stages. A test compares that with what the allocator hands out.
struct BlockCost {
  Work forward, backward;  ///< a row, experts included
  Work again;              ///< of a row, what the way up computes of the way down again where nothing was kept
  Work spared_by_attention, spared_by_experts;  ///< of that, by what Keep::kAttention keeps, and kExperts besides
  int64_t saved = 0;   ///< a row of the local batch: what mixing keeps up to its backward pass, outputs included
  int64_t mixing = 0;  ///< a row of the slice in flight: temporaries of attention or MLP
  int64_t mixing_of_long = 0;           ///< the same where the slice is one long document
  int64_t kept_attention = 0;           ///< a row of the local batch: of saved, what Keep::kAttention keeps
  int64_t tensor_axis_calls = 0;        ///< collectives of the tensor axis in either pass of mixing through a slice
  int64_t tensor_axis_calls_again = 0;  ///< those of what is computed again where nothing was kept
  ExpertsCost experts;                  ///< nothing in a dense block
  bool is_moe = false;

  Work again_where(Keep keep) const;
  int64_t calls_again_where(Keep keep) const;
  /// Bytes that a layer keeps between its ways beside its input and routing: of rows here, of rows that its experts
  /// received and of those that these have routed.
  int64_t kept_bytes(Keep keep, int64_t rows, int64_t received, int64_t routed) const;
};
/// For each of these blocks (all maps of one, with their adapters) the first that is made like it: what one costs, the
/// other does.
std::vector<size_t> first_alike(const Blueprint& blueprint, const std::vector<std::vector<LinearMap>>& blocks);
/// `maps`: all of one block, with their adapters.
BlockCost block_cost(const Blueprint& blueprint, const std::vector<LinearMap>& maps, const PassTraits& traits);

/// Scratch elements of one pass through a block of these whole maps: all maps of mixing and one chunk of experts.
int64_t block_scratch_elements(const std::vector<LinearMap>& maps, const PassTraits& traits, int64_t chunk_experts);

}  // namespace moetune
