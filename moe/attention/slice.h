// Whole documents that go through a block's mixing at once, packed one after the other.
//
//   std::vector<Slice> slices = make_slices(document_lengths, position_U, token_U, 4096, device, axis);
//   at::Tensor x_s = x_TD.narrow(0, slices[0].first_row, slices[0].num_rows);
//
// Each rank of the tensor axis holds an equal run of every slice's rows, the last ranks' with padding behind: U rows of
// documents, T = ceil(U / size) rows a rank. A rank's local batch is its runs one after the other.
//
// Attention stays inside each document (moe/attention/packed_attention.h).
#pragma once

#include <torch/types.h>

#include <cstdint>
#include <vector>

#include "parallel/comm/tensor_axis.h"

namespace moetune {

struct Slice {
  int64_t first_row = 0;  ///< of this rank's rows in its local batch
  int64_t num_rows = 0;   ///< T: this rank's rows, padding included
  /// the last of them, which are of no document: neither routed nor counted, without gradient
  int64_t num_padding = 0;
  at::Tensor token_T;     ///< int64: number of the token in the global batch of the step; 0 for padding
  at::Tensor document_T;  ///< int64: number of the row's document within the slice; num_documents for padding
  int64_t num_documents = 0;
  at::Tensor document_length;    ///< int64 [documents]
  std::vector<int64_t> lengths;  ///< the same on the host

  int64_t num_all_rows = 0;  ///< U: rows of the documents, on all ranks of the tensor axis together
  at::Tensor position_U;     ///< int64, restarting in each document
  at::Tensor token_U;        ///< int64: number of the token in the global batch of the step
};

/// Cuts the batch into slices of whole documents, as many as make at most `slice_tokens` rows, a longer one by itself
/// (one empty slice when there are no documents), all ranks of the axis alike. Tensors are put on `device`.
std::vector<Slice> make_slices(const std::vector<int64_t>& document_lengths, const std::vector<int64_t>& position_U,
                               const std::vector<int64_t>& token_U, int64_t slice_tokens, at::Device device,
                               const TensorAxis& axis = {});

/// Place of each row of the documents among the local batches of all ranks of the axis, one rank's after the other.
std::vector<int64_t> gathered_places(const std::vector<Slice>& slices);

}  // namespace moetune
