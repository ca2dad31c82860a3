#include "lora/grouped_mm.h"

#include <algorithm>

#include "parallel/base/error.h"
#include "parallel/device/gpu_support.h"
#include "parallel/device/upload.h"

namespace moetune {
namespace {

// What the grouped kernel's copy engine reads: a matrix, or a stack of them, with neighbours along one dim and 16-byte
// words along the others (LibTorch: ATen/native/GroupedMMUtils.h).
bool kernel_operand(const at::Tensor& matrix) {
  const auto neighbours = [&](int64_t along, int64_t other) {
    return matrix.stride(along) == 1 && matrix.stride(other) % kGroupedAlignment == 0 &&
           matrix.stride(other) >= matrix.size(along);
  };
  return reinterpret_cast<uintptr_t>(matrix.data_ptr()) % 16 == 0 && (neighbours(-1, -2) || neighbours(-2, -1)) &&
         (matrix.dim() < 3 || matrix.stride(0) % kGroupedAlignment == 0);
}

// The grouped kernel wants at least one number.
bool has_kernel(const RowGroups& groups, const at::Tensor& rows, int64_t inner, int64_t outer) {
  return groups.one_kernel && rows.scalar_type() == at::kBFloat16 && rows.size(0) > 0 && inner > 0 && outer > 0;
}

// The operand as the kernel reads it: its last `dims` dims filled up with zeros, which add nothing to a product.
at::Tensor aligned(const at::Tensor& matrix, int64_t dims) {
  std::vector<int64_t> missing;  // before and behind, from the last dim on
  for (int64_t dim = -1; dim >= -dims; --dim) {
    missing.insert(missing.end(), {0, grouped_aligned(matrix.size(dim)) - matrix.size(dim)});
  }
  const bool whole = std::all_of(missing.begin(), missing.end(), [](int64_t count) { return count == 0; });
  if (whole) return kernel_operand(matrix) ? matrix : matrix.clone(at::MemoryFormat::Contiguous);
  return at::constant_pad_nd(matrix, missing);
}

}  // namespace

RowGroups RowGroups::from_counts(const std::vector<int64_t>& counts, at::Device device) {
  return runs(counts, static_cast<int64_t>(counts.size()), device).front();
}

std::vector<RowGroups> RowGroups::runs(const std::vector<int64_t>& counts, int64_t length, at::Device device) {
  std::vector<RowGroups> runs(1);
  std::vector<int32_t> ends_i32;
  for (const int64_t count : counts) {
    if (runs.back().num_groups() == length) runs.emplace_back();
    const int64_t end = runs.back().num_rows() + count;
    runs.back().ends.push_back(end);
    ends_i32.push_back(static_cast<int32_t>(end));
  }
  const at::Tensor ends_E = uploaded(at::tensor(ends_i32, at::kInt), device);
  const bool one_kernel = ends_E.is_cuda() && has_grouped_kernel(compute_capability(ends_E.get_device()));
  int64_t first = 0;
  for (RowGroups& run : runs) {
    run.ends_e = ends_E.narrow(0, first, run.num_groups());
    run.one_kernel = one_kernel;
    first += run.num_groups();
  }
  return runs;
}

at::Tensor grouped_mm(const at::Tensor& x_XI, const at::Tensor& w_eIO, const RowGroups& groups) {
  MT_CHECK(x_XI.size(0) == groups.num_rows(), x_XI.size(0), " rows, groups of ", groups.num_rows());
  if (has_kernel(groups, x_XI, w_eIO.size(1), w_eIO.size(2))) {
    return at::_grouped_mm(aligned(x_XI, 1), aligned(w_eIO, 2), groups.ends_e).narrow(1, 0, w_eIO.size(2));
  }
  at::Tensor y_XO = at::empty({x_XI.size(0), w_eIO.size(2)}, x_XI.options());
  for (int64_t group = 0; group < groups.num_groups(); ++group) {
    if (groups.count(group) == 0) continue;
    at::Tensor y = y_XO.narrow(0, groups.begin(group), groups.count(group));
    at::mm_out(y, x_XI.narrow(0, groups.begin(group), groups.count(group)), w_eIO[group]);
  }
  return y_XO;
}

at::Tensor grouped_outer(const at::Tensor& a_XM, const at::Tensor& b_XN, const RowGroups& groups) {
  MT_CHECK(a_XM.size(0) == groups.num_rows() && b_XN.size(0) == groups.num_rows(), "rows ", a_XM.size(0), " and ",
           b_XN.size(0));
  const int64_t M = a_XM.size(1), N = b_XN.size(1);
  if (has_kernel(groups, a_XM, M, N)) {
    const at::Tensor out_eMN = at::_grouped_mm(aligned(a_XM, 1).t(), aligned(b_XN, 1), groups.ends_e);
    return out_eMN.narrow(1, 0, M).narrow(2, 0, N);
  }
  if (groups.num_rows() == 0) return at::zeros({groups.num_groups(), M, N}, a_XM.options());
  at::Tensor out_eMN = at::empty({groups.num_groups(), M, N}, a_XM.options());
  for (int64_t group = 0; group < groups.num_groups(); ++group) {
    at::Tensor out = out_eMN[group];
    if (groups.count(group) == 0) {
      out.zero_();
      continue;
    }
    at::mm_out(out, a_XM.narrow(0, groups.begin(group), groups.count(group)).t(),
               b_XN.narrow(0, groups.begin(group), groups.count(group)));
  }
  return out_eMN;
}

}  // namespace moetune
