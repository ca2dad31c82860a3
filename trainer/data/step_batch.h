// A rank's part of a step on its device, cut into slices, with everything that counts known beforehand.
//
// The ranks of a tensor axis have the same documents and each its rows of every slice (moe/attention/slice.h): T rows
// here. "All rows" are theirs together as a gather puts them, one rank's after the other: the padding is among them.
//
//   StepBatch batch = make_step_batch(batches.local(step, rank, num_ranks), model, slice_tokens, device, compute);
#pragma once

#include <torch/types.h>

#include <vector>

#include "moe/attention/slice.h"
#include "moe/model.h"
#include "trainer/data/batches.h"

namespace moetune {

/// Rows that go through blocks together, and where they are in their documents.
struct Stream {
  std::vector<Slice> slices;
  std::vector<RopeAngles> angles;  ///< by slice, of all its documents' rows
  at::Tensor token_T;              ///< int64: global token number of each row of this rank; 0 for padding
  at::Tensor place;                ///< int64: where each row of the documents is among all rows
  at::Tensor target_row, target;   ///< int64 [n]: of all rows those with a target, and what it is
  int64_t num_rows = 0;            ///< of the documents
  int64_t num_gathered_rows = 0;   ///< all rows: padding included
  at::Tensor target_weight;        ///< fp32 [n]: how much each of these counts; undefined: 1
  double divisor = 0.0;            ///< of this stream's loss, over the mesh: its targets, or the sum of their weights
};

struct StepBatch {
  at::Tensor input_U;  ///< int64: tokens of all rows; -1 for padding
  Stream main;
  Stream mtp;  ///< rows of the MTP module: all but the last of each document
  /// int64: of this rank's rows, which of the main stream's all rows each is; any for padding
  at::Tensor mtp_row;
  at::Tensor mtp_next_token;  ///< int64: of all rows, the token after each; -1 for padding
  BatchTotals global;
};

StepBatch make_step_batch(const RankBatch& local, const Model& model, int64_t slice_tokens, at::Device device,
                          at::ScalarType compute);

}  // namespace moetune
