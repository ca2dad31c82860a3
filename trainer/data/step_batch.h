// A rank's part of a step on its device, cut into slices, with everything that counts known beforehand.
//
//   StepBatch batch = make_step_batch(batches.local(step, rank, num_ranks), model, slice_tokens, device, compute);
#pragma once

#include <torch/types.h>

#include <vector>

#include "moe/model.h"
#include "moe/slice.h"
#include "trainer/data/batches.h"

namespace moetune {

/// Rows that go through blocks together, and where they are in their documents.
struct Stream {
  std::vector<Slice> slices;
  std::vector<RopeAngles> angles;  ///< by slice
  at::Tensor token_T;              ///< int64: global token number of each row
  at::Tensor target_row, target;   ///< int64 [n]: rows with a target and what it is
  int64_t num_rows = 0;
  int64_t global_targets = 0;      ///< over the mesh: the divisor of this stream's loss
};

struct StepBatch {
  at::Tensor input_T;         ///< int64: tokens
  Stream main;
  Stream mtp;                 ///< rows of the MTP module: all but the last of each document
  at::Tensor mtp_row;         ///< int64: their rows in the main stream
  at::Tensor mtp_next_token;  ///< int64: the token after each
  BatchTotals global;
};

StepBatch make_step_batch(const RankBatch& local, const Model& model, int64_t slice_tokens, at::Device device, at::ScalarType compute);

}  // namespace moetune
