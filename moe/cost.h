// What computing a row takes, declared by each part of a block beside the code that computes it: products by kind,
// bytes that move, and bytes of memory. From shapes alone: a plan adds parts up and walks the step program over them.
//
//   const PartCost cost = latent_attention_cost(spec, maps, traits);     // moe/attention/latent_attention.h
//   const BlockCost block = block_cost(blueprint, maps, traits);         // moe/block.h, all parts of a block
//
// A row is one of this rank's. On a tensor axis, what is computed by parts of matrices for the rows of all P ranks, a
// P-th as wide, takes the same a row, more where the first rank's part is wider than the others; gathered rows take P
// times theirs.
#pragma once

#include <torch/types.h>

#include <string>
#include <vector>

#include "moe/inventory.h"

namespace moetune {

/// What decides costs beside the shapes.
struct PassTraits {
  at::ScalarType compute = at::kFloat;
  at::DeviceType device = at::kCPU;
  bool exchanged = false;     ///< rows are copies from other ranks, not the local batch itself
  double remote_ranks = 0.0;  ///< other ranks that a row goes to, on average
  bool balance_loss = false;
  /// ranks of the tensor axis, which share matrices and rows, and those of them that share each expert
  TensorParts parts;
  bool trains_router = false;   ///< its weight or an adapter of it
  bool several_slices = false;  ///< rows of the local batch go through mixing in more than one
  double keys = 0.0;            ///< that a query sees through the layer's mask, on average over the rows

  bool on_gpu() const { return device != at::kCPU; }
  int64_t element_bytes() const { return static_cast<int64_t>(c10::elementSize(compute)); }
  /// Of statistics, scores and gradients: fp32, or fp64 in proofs.
  int64_t wide_bytes() const { return static_cast<int64_t>(c10::elementSize(accumulate_dtype(compute))); }
};

/// One way through a part, a row.
struct Work {
  // Floating-point operations of products, two a multiplication with addition.
  double dense = 0.0;      ///< in compute dtype
  double grouped = 0.0;    ///< over rows grouped by expert
  double attention = 0.0;  ///< queries with keys and probabilities with values
  double scores = 0.0;     ///< of the router, fp32 results
  double products() const { return dense + grouped + attention + scores; }
  double touched_bytes = 0.0;  ///< device memory read and written by what is no product: norms, activations, gathers
  double tensor_axis_bytes = 0.0, exchange_bytes = 0.0;  ///< sent by this rank

  /// Adds `times` as much.
  Work& add(const Work& other, double times = 1.0);
};

struct PartCost {
  Work forward, backward;
  Work not_again;          ///< of forward, what is not computed again for a backward pass: what nothing there reads
  Work spared_where_kept;  ///< of the rest, what is not where Keep::kAttention keeps what the part gives
  int64_t kept = 0;        ///< bytes a row of that
  int64_t saved = 0;       ///< bytes a row that the forward pass leaves for the backward pass, outputs included
  int64_t transient = 0;   ///< bytes a row of the slice in flight, in either pass, at the most
  int64_t transient_of_long = 0;  ///< the same where the slice is one long document
  int64_t tensor_axis_calls = 0;  ///< collectives of the tensor axis in either pass through a slice, whatever its rows
  int64_t tensor_axis_calls_again = 0;  ///< those of what is computed again
};

/// Of one row through a map, or through one of a stack, and through its adapter: forward; d x and what trains. Where
/// some of a stack train, a row is of one that does as often as there are such among all.
double forward_flops(const LinearMap& map);
double backward_flops(const LinearMap& map);

/// The maps of a block that are no stacks, and which of their inputs autograd keeps.
class DenseMaps {
 public:
  DenseMaps(const std::vector<LinearMap>& maps, const PassTraits& traits) : maps_(maps), traits_(traits) {}

  /// Whether the map's own gradients take its input.
  bool keeps_input(const std::string& leaf) const;
  /// Bytes a row that the adapters of these maps keep: x A^T.
  int64_t low_bytes(const std::vector<std::string>& leaves) const;
  /// The products of these maps and of their adapters; forward, or d x and what trains.
  double forward_flops(const std::vector<std::string>& leaves) const;
  double backward_flops(const std::vector<std::string>& leaves) const;
  /// Of the forward products, those with frozen weights: what a pass for the graph alone does without (Wanted).
  double spared_flops(const std::vector<std::string>& leaves) const;
  /// What the thin products of their adapters read and write, which bytes bound and not multiplications.
  double forward_adapter_bytes(const std::vector<std::string>& leaves) const;
  double backward_adapter_bytes(const std::vector<std::string>& leaves) const;
  /// Outputs that all ranks of the tensor axis hold of a map together; 0: there is none.
  int64_t outputs(const std::string& leaf) const;

 private:
  template <typename Visit>
  void visit(const std::vector<std::string>& leaves, const Visit& take) const;

  const std::vector<LinearMap>& maps_;
  const PassTraits& traits_;
};

}  // namespace moetune
