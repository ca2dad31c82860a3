// The experts whose weights are in use at a time, their rows, and some of them: those that have adapters or train.
//
//   const ListedRows rows(adapter.experts(), chunk);           // of a list of this rank's experts those in the chunk
//   low_XR = grouped_mm(rows.of(x_XI), rows.of_stack(a_eRI).transpose(1, 2), rows.groups());
//   rows.add_to(y_XO, delta_XO, scale);
//   lay_over(dense_eOI, chunk.first, experts, trained_eOI);   // their weights in the place of others
//
// A list is sorted, and numbers experts from this rank's first; its stacks have a row for each expert in it.
#pragma once

#include <torch/types.h>

#include <cstdint>
#include <vector>

#include "lora/grouped_mm.h"

namespace moetune {

/// A run of experts first .. first + count - 1 of this rank and their rows, numbered from the run's first row.
struct ExpertChunk {
  int64_t first = 0;
  int64_t count = 0;
  int64_t first_row = 0;
  RowGroups groups;
};

/// Experts of a list that lie in a run of experts: themselves a run of the list, and of its stacks.
struct ListedRun {
  ListedRun(const std::vector<int64_t>& experts, int64_t first_expert, int64_t num_experts);
  int64_t first = 0, count = 0;
  at::Tensor of_stack(const at::Tensor& stack) const { return stack.narrow(0, first, count); }
};

/// The rows of a chunk that are of experts of a list.
class ListedRows {
 public:
  ListedRows(const std::vector<int64_t>& experts, const ExpertChunk& chunk);
  bool none() const { return run_.count == 0; }
  const RowGroups& groups() const { return groups_; }
  at::Tensor of_stack(const at::Tensor& stack) const { return run_.of_stack(stack); }
  /// These of the chunk's rows; an undefined tensor stays one.
  at::Tensor of(const at::Tensor& rows_X) const {
    return row_X_.defined() && rows_X.defined() ? rows_X.index_select(0, row_X_) : rows_X;
  }
  /// target += scale * delta at these rows.
  void add_to(at::Tensor target, const at::Tensor& delta, double scale) const {
    row_X_.defined() ? target.index_add_(0, row_X_, delta, scale) : target.add_(delta, scale);
  }

 private:
  ListedRun run_;
  RowGroups groups_;
  at::Tensor row_X_;  // int64; undefined: all rows of the chunk
};

/// Writes what `stack` has of listed experts to their places in `out`, which is of experts from `first_expert` on.
void lay_over(at::Tensor out, int64_t first_expert, const std::vector<int64_t>& experts, const at::Tensor& stack);

}  // namespace moetune
