// Attention of packed documents on a GPU, in half dtypes: rows are read where they lie, without gathering them.
//
//   if (has_ragged_attention(q_UHA, v_UGA)) {
//     y_UHA = ragged_attention(q_UHA, k_UGA, v_UGA, slice.lengths, spec, sinks_H);
//   }
//
// Short documents go together through FlashAttention-2 (Dao 2023), long ones one by one through cuDNN's attention
// (ragged_pieces.h). Every mask and sinks go this way. With s_ij = scale q_i . k_j and j over the keys that query i
// sees:
//
//   y_i = sum_j exp(s_ij - l_i) v_j,   l_i = ln(sum_j exp(s_ij) + exp(sink))
//
// A row keeps its query, key, value and output, and l of each head.
//
// cuDNN's programs are made on first use, for each number of rows and layout: warm_up_ragged_attention() makes them.
#pragma once

#include <torch/types.h>

#include <cstdint>
#include <set>
#include <vector>

#include "moe/blueprint.h"
#include "moe/keep.h"

namespace moetune {

/// Whether these are of a device, dtype and width that ragged_attention() computes.
bool has_ragged_attention(const at::Tensor& q_UHA, const at::Tensor& v_UGA);

/// As packed_attention() of documents of these lengths, at least one row of them.
at::Tensor ragged_attention(const at::Tensor& q_UHA, const at::Tensor& k_UGA, const at::Tensor& v_UGA,
                            const std::vector<int64_t>& lengths, const AttentionSpec& spec,
                            const at::Tensor& sinks_H = {}, KeptAttention* kept = nullptr);

/// Runs forward and backward once for a document of each of these lengths (add_dense_rows()), with this rank's heads,
/// in the dtype in which the model computes and on the thread that will, and frees what it took. Returns how many of
/// them have a program now: all, or none where the dense kernel is not used.
int64_t warm_up_ragged_attention(const AttentionSpec& spec, int64_t heads, int64_t kv_heads,
                                 const std::set<int64_t>& rows, at::TensorOptions options);

}  // namespace moetune
