// Attention of packed documents in dense batches: documents of similar length share a batch (a bucket), padded behind
// their last token, and dense_attention() computes it under the layer's mask. Under a causal mask no real query sees
// that padding, so the mathematics is that of each document alone.
//
//   at::Tensor out_UHA = bucketed_attention(q_UHA, k_UGA, v_UGA, slice.lengths, spec, sinks_H);
//
// For CPUs and, on GPUs, for what ragged_attention() does not compute.
#pragma once

#include <torch/types.h>

#include <cstdint>
#include <vector>

#include "moe/blueprint.h"

namespace moetune {

/// Documents of one padded length: rows of a dense [B, length] batch.
struct AttentionBucket {
  int64_t batch = 0;   ///< B
  int64_t length = 0;  ///< padded
};

struct AttentionBuckets {
  /// Of documents of these lengths, one after the other, at least one. Tensors are put on `device`.
  AttentionBuckets(const std::vector<int64_t>& lengths, at::Device device);

  std::vector<AttentionBucket> buckets;
  bool in_order = true;       ///< the buckets are the rows as they lie: nothing to gather
  at::Tensor gather_M;        ///< int64: row of each bucket place (padding points at row 0); M = sum of B * length
  at::Tensor inverse_U;       ///< int64: bucket place of each row
  at::Tensor padding_places;  ///< int64: bucket places that hold padding
};

/// As packed_attention() of documents of these lengths, at least one row of them.
at::Tensor bucketed_attention(const at::Tensor& q_UHA, const at::Tensor& k_UGA, const at::Tensor& v_UGA,
                              const std::vector<int64_t>& lengths, const AttentionSpec& spec,
                              const at::Tensor& sinks_H = {});

}  // namespace moetune
