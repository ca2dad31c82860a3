// Whole documents that go through a block's mixing at once, packed one after the other without padding.
//
//   std::vector<Slice> slices = make_slices(document_lengths, position_T, token_T, /*slice_tokens=*/4096);
//   at::Tensor x_s = x_TD.narrow(0, slices[0].first_row, slices[0].num_rows);
//
// Attention stays inside each document: documents of similar length share a dense batch (a bucket), padded behind their last
// token. Under a causal mask no real query sees that padding, so the mathematics is that of each document alone.
#pragma once

#include <torch/types.h>

#include <cstdint>
#include <vector>

namespace moetune {

/// Documents of one padded length: rows of a dense [B, length] batch.
struct AttentionBucket {
  int64_t batch = 0;   ///< B
  int64_t length = 0;  ///< padded
};

struct Slice {
  int64_t first_row = 0;  ///< in the rank's local batch
  int64_t num_rows = 0;   ///< T of this slice
  at::Tensor position_T;  ///< int64, restarting in each document
  at::Tensor token_T;     ///< int64: number of the token in the global batch of the step
  at::Tensor document_T;  ///< int64: number of the row's document within the slice
  int64_t num_documents = 0;
  at::Tensor document_length;  ///< int64 [documents]

  std::vector<AttentionBucket> buckets;
  bool in_order = true;       ///< the buckets are the rows as they lie: nothing to gather
  at::Tensor gather_M;        ///< int64: row of each bucket place (padding points at row 0); M = sum of B * length
  at::Tensor inverse_T;       ///< int64: bucket place of each row
  at::Tensor padding_places;  ///< int64: bucket places that hold padding
};

/// Cuts the local batch into slices of whole documents of at least `slice_tokens` rows each (the last may be smaller; one empty
/// slice when there are no documents). Tensors are put on `device`.
std::vector<Slice> make_slices(const std::vector<int64_t>& document_lengths, const std::vector<int64_t>& position_T,
                               const std::vector<int64_t>& token_T, int64_t slice_tokens, at::Device device);

}  // namespace moetune
