// What a pass through one block holds beside the model, in bytes a row, from shapes alone: the terms of a memory plan.
//
//   const BlockMemory m = block_memory(blueprint, block_maps(blueprint, 3, &targets), traits);
//   peak = rows * m.saved + max(slice_rows * m.mixing, rows * m.received + chunk_rows * m.expert)
//
// The way up is what counts: it holds the graph of mixing over all rows of the local batch and then, one after the
// other, the temporaries of a slice or those of a chunk of experts. Each term is a sum over the tensors that are alive
// at that point; a test compares it with what the allocator hands out.
//
// On a tensor axis a row is one of this rank's. What is computed by parts of matrices for the rows of all P ranks, a
// P-th as wide, takes the same a row, more where the first rank's part is wider than the others; gathered rows take P
// times theirs.
#pragma once

#include <torch/types.h>

#include <vector>

#include "moe/inventory.h"

namespace moetune {

/// What decides the sizes beside the shapes.
struct PassTraits {
  at::ScalarType compute = at::kFloat;
  at::DeviceType device = at::kCPU;
  bool train_weights = false;  ///< every map's own weight trains: its input is kept
  bool exchanged = false;      ///< rows are copies from other ranks, not the local batch itself
  bool balance_loss = false;
  /// ranks of the tensor axis, which share matrices and rows, and those of them that share each expert
  TensorParts parts;
  bool trains_router = false;  ///< its weight or an adapter of it, whose gradient takes its input as wide as scores are
};

struct BlockMemory {
  /// a row of the local batch: what mixing keeps from recomputation to backward, its outputs included
  int64_t saved = 0;
  int64_t mixing = 0;  ///< a row of the slice in flight: temporaries of attention or MLP
  /// a row that this rank's experts received: its copies and their gradients; 0 in a dense block
  int64_t received = 0;
  int64_t expert = 0;       ///< a routed row of the chunk in flight; 0 in a dense block
  int64_t kept_expert = 0;  ///< a routed row of a layer that keeps its intermediates
};

/// `maps`: all of one block, with their adapters.
BlockMemory block_memory(const Blueprint& blueprint, const std::vector<LinearMap>& maps, const PassTraits& traits);

/// Experts, or parts of experts, whose dense weights are in use at a time: as many of `local_experts` as fit into
/// `chunk_bytes`, at least one. The same on all ranks that share experts.
int64_t experts_at_a_time(const Blueprint& blueprint, at::ScalarType compute, int64_t chunk_bytes,
                          int64_t local_experts, const TensorParts& parts);
/// Scratch elements of one pass through a block of these whole maps: all maps of mixing and one chunk of experts.
int64_t block_scratch_elements(const std::vector<LinearMap>& maps, const TensorParts& parts, at::ScalarType compute,
                               int64_t chunk_experts);

}  // namespace moetune
