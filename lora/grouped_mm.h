// Matrix products of rows grouped by expert: rows ends[e-1] .. ends[e] - 1 belong to expert e.
//
//   RowGroups groups = RowGroups::from_counts(counts, device);              // or runs() of them, one upload for all
//   at::Tensor y_XO = grouped_mm(x_XI, w_eOI.transpose(1, 2), groups);      // y[rows of e] = x[rows of e] W_e^T
//   at::Tensor dw_eOI = grouped_outer(dy_XO, x_XI, groups);                  // dW_e = dy[rows of e]^T x[rows of e]
//
// bf16 on a GPU for which LibTorch has one (parallel/device/gpu_support.h) goes through one grouped kernel, whatever
// the number of experts and the sizes; other GPUs, other dtypes and CPUs go expert by expert, which is also the
// reference. An expert without rows is no special case: its product is empty, its gradient zero.
#pragma once

#include <torch/types.h>

#include <cstdint>
#include <vector>

#include "parallel/base/ceil_div.h"

namespace moetune {

struct RowGroups {
  std::vector<int64_t> ends;  ///< host: end row of each expert; ends.back() rows in all
  at::Tensor ends_e;          ///< device: the same, int32
  /// Products in bf16 go through one kernel over all groups, where LibTorch has one for the device
  /// (parallel/device/gpu_support.h); set to false, they go group by group there too.
  bool one_kernel = false;

  static RowGroups from_counts(const std::vector<int64_t>& counts, at::Device device);
  /// The groups in runs of `length`, the last as many as there are left, rows of each run numbered from 0. One upload,
  /// for which the host does not wait; one run without groups where there are no counts.
  static std::vector<RowGroups> runs(const std::vector<int64_t>& counts, int64_t length, at::Device device);
  int64_t num_groups() const { return static_cast<int64_t>(ends.size()); }
  int64_t num_rows() const { return ends.empty() ? 0 : ends.back(); }
  int64_t begin(int64_t group) const { return group == 0 ? 0 : ends[group - 1]; }
  int64_t count(int64_t group) const { return ends[group] - begin(group); }
};

/// The kernel takes rows that lie apart by multiples of 16 bytes, so many numbers of bf16. Other operands are copied to
/// such: thin ones, as adapters of rank 4 are, at little cost; experts of odd widths whole, in each product.
constexpr int64_t kGroupedAlignment = 8;
/// `count` rounded up to a multiple of it.
constexpr int64_t grouped_aligned(int64_t count) { return ceil_div(count, kGroupedAlignment) * kGroupedAlignment; }

/// x_XI [X, I], w_eIO [e, I, O] (any views) -> [X, O].
at::Tensor grouped_mm(const at::Tensor& x_XI, const at::Tensor& w_eIO, const RowGroups& groups);
/// a_XM, b_XN -> [e, M, N]: a^T b of each group's rows.
at::Tensor grouped_outer(const at::Tensor& a_XM, const at::Tensor& b_XN, const RowGroups& groups);

}  // namespace moetune
