#include "lora/grouped_mm.h"

#include "parallel/base/error.h"
#include "parallel/device/gpu_support.h"
#include "parallel/device/upload.h"

namespace moetune {
namespace {

// What the grouped kernel's copy engine reads: a matrix, or a stack of them, with neighbours along one dim and 16-byte
// words along the others (LibTorch: ATen/native/GroupedMMUtils.h).
bool kernel_operand(const at::Tensor& matrix) {
  const auto neighbours = [&](int64_t along, int64_t other) {
    return matrix.stride(along) == 1 && matrix.stride(other) % 8 == 0 && matrix.stride(other) >= matrix.size(along);
  };
  return reinterpret_cast<uintptr_t>(matrix.data_ptr()) % 16 == 0 && (neighbours(-1, -2) || neighbours(-2, -1)) &&
         (matrix.dim() < 3 || matrix.stride(0) % 8 == 0);
}

// The grouped kernel wants 16-byte rows and at least one number.
bool fits_grouped_kernel(const RowGroups& groups, const at::Tensor& rows, const at::Tensor& with, int64_t inner,
                         int64_t outer) {
  return groups.one_kernel && rows.scalar_type() == at::kBFloat16 && rows.size(0) > 0 && inner > 0 && outer > 0 &&
         inner % 8 == 0 && outer % 8 == 0 && kernel_operand(rows) && kernel_operand(with);
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
  if (fits_grouped_kernel(groups, x_XI, w_eIO, w_eIO.size(1), w_eIO.size(2)))
    return at::_grouped_mm(x_XI, w_eIO, groups.ends_e);
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
  if (fits_grouped_kernel(groups, a_XM, b_XN, a_XM.size(1), b_XN.size(1)))
    return at::_grouped_mm(a_XM.t(), b_XN, groups.ends_e);
  at::Tensor out_eMN = at::empty({groups.num_groups(), a_XM.size(1), b_XN.size(1)}, a_XM.options());
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
