// The ranks that hold parts of the same matrices and walk the same documents: rows gathered before a part is applied,
// partial results summed after it.
//
//   TensorAxis axis(mesh.tp());                          // TensorAxis() is one rank: the identity, without copies
//   at::Tensor x_UC = axis.gather_rows(x_TC, num_rows);  // every rank's rows, for this rank's columns of the weight
//   at::Tensor y_TC = axis.reduce_scatter_rows(partial_UC);  // sum over the ranks; this rank's rows of it
//
// U rows are those of all ranks together, T = ceil(U / size) those of one: rank t holds rows t T .. t T + T - 1 of U,
// padded with rows of zeros behind the last (sequence parallelism: Korthikanti et al. 2022, section 4.2.2).
//
// gather_rows and reduce_scatter_rows are differentiable and each other's transpose: the gradient that a rank has of
// gathered rows counts for its own use of them alone, and their sum comes home. Hazard: the backward pass is collective
// too. Ranks must build the same graph: the same calls with the same row counts, on tensors that require a gradient on
// all ranks or on none.
#pragma once

#include <torch/types.h>

#include <cstdint>
#include <memory>
#include <vector>

#include "parallel/device/wanted.h"

namespace moetune {

class Communicator;

class TensorAxis {
 public:
  TensorAxis() = default;
  /// The group must outlive the axis, its copies and the graphs made with it.
  explicit TensorAxis(Communicator& group);

  int64_t size() const { return size_; }
  /// This rank's place, 0 .. size() - 1.
  int64_t index() const { return index_; }
  /// T of U rows: the same on every rank, pad rows included.
  int64_t rows_of(int64_t num_rows) const { return (num_rows + size_ - 1) / size_; }

  /// x_TC [T, ...] -> the first `num_rows` of the ranks' rows, one rank after the other: [U, ...], U <= size() * T; the
  /// others are padding, whose gradient is zero. Collective.
  at::Tensor gather_rows(const at::Tensor& x_TC, int64_t num_rows) const;
  /// The same of several matrices [T, C1], [T, C2], ... of one dtype in one collective.
  std::vector<at::Tensor> gather_rows(const std::vector<at::Tensor>& parts_TC, int64_t num_rows) const;
  /// partial_UC [U, ...] -> this rank's rows of the sum over the ranks: [ceil(U / size()), ...]. Collective; without
  /// numbers its backward pass alone is.
  at::Tensor reduce_scatter_rows(const at::Tensor& partial_UC, Wanted wanted = Wanted::kNumbers) const;

  /// In place over the ranks, not differentiable. Collective.
  void sum(const at::Tensor& tensor) const;
  void max(const at::Tensor& tensor) const;

  /// Seconds that gathers and sums took on the device's current stream since the last call, of all copies of the axis,
  /// their backward passes and the wait for other ranks included.
  double take_s() const;

 private:
  std::shared_ptr<struct AxisGroup> group_;  // null: one rank
  int64_t size_ = 1;
  int64_t index_ = 0;
};

}  // namespace moetune
