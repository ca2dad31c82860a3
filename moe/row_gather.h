// Rows of tokens by expert, and back: a copy of each token's row for each expert that it chose, and the sum over them.
//
//   const at::Tensor place_YK = places_of(slot_X, Y, K);            // once a round; the host does not wait
//   at::Tensor x_XD = gather_rows(y_YD, row_X);                     // x[i] = y[row[i]]
//   gather_sum(out_XD, {row_X, place_YK, first}, sum_YD);           // sum[row[i]] += out[i]
//
// On a GPU the sum is over the places of a token, so that each of its numbers is read and written once a chunk, in an
// order that does not depend on which block ran first; tokens without a row among these are left alone. Elsewhere it is
// index_add_, which is also the reference.
#pragma once

#include <torch/types.h>

#include <cstdint>

namespace moetune {

/// The place among the routed rows of each of the K slots of Y rows, int32 [Y, K], from the slots of the routed rows in
/// order (int64, flat indices into [Y, K], each once); -1 for a slot that has none.
at::Tensor places_of(const at::Tensor& slot_X, int64_t num_rows, int64_t top_k);

/// from_YD[row_X[i]] for each i: [X, D], or with `columns` above D [X, columns], of which the first D are written.
at::Tensor gather_rows(const at::Tensor& from_YD, const at::Tensor& row_X, int64_t columns = 0);

/// A run of the routed rows: those from `first` on.
struct RowRun {
  at::Tensor row_X;     ///< int64, the row of Y that each belongs to
  at::Tensor place_YK;  ///< of all routed rows, places_of(); read on GPUs only
  int64_t first = 0;
};

/// sum_YD[y] += each row of rows_XD that belongs to y: of bf16 in fp32, rounded once.
void gather_sum(const at::Tensor& rows_XD, const RowRun& run, at::Tensor& sum_YD);

}  // namespace moetune
