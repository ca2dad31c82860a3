#include "lora/grouped_mm.h"

#include "parallel/base/error.h"
#include "parallel/device/gpu_support.h"

namespace moetune {
namespace {

// The grouped kernel wants 16-byte rows and at least one number.
bool fits_grouped_kernel(const RowGroups& groups, const at::Tensor& rows, int64_t inner, int64_t outer) {
  return groups.one_kernel && rows.scalar_type() == at::kBFloat16 && rows.size(0) > 0 && inner > 0 && outer > 0 &&
         inner % 8 == 0 && outer % 8 == 0;
}

}  // namespace

RowGroups RowGroups::from_counts(const std::vector<int64_t>& counts, at::Device device) {
  RowGroups groups;
  std::vector<int32_t> ends_i32;
  int64_t end = 0;
  for (int64_t count : counts) {
    end += count;
    groups.ends.push_back(end);
    ends_i32.push_back(static_cast<int32_t>(end));
  }
  groups.ends_e = at::tensor(ends_i32, at::kInt).to(device);
  if (groups.ends_e.is_cuda()) groups.one_kernel = has_grouped_kernel(compute_capability(groups.ends_e.get_device()));
  return groups;
}

RowGroups RowGroups::range(int64_t first, int64_t num) const {
  RowGroups part;
  part.one_kernel = one_kernel;
  const int64_t base = begin(first);
  for (int64_t group = first; group < first + num; ++group) part.ends.push_back(ends[group] - base);
  part.ends_e = first == 0 ? ends_e.narrow(0, 0, num) : ends_e.narrow(0, first, num) - base;
  return part;
}

at::Tensor grouped_mm(const at::Tensor& x_XI, const at::Tensor& w_eIO, const RowGroups& groups) {
  MT_CHECK(x_XI.size(0) == groups.num_rows(), x_XI.size(0), " rows, groups of ", groups.num_rows());
  if (fits_grouped_kernel(groups, x_XI, w_eIO.size(1), w_eIO.size(2)))
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
  if (fits_grouped_kernel(groups, a_XM, a_XM.size(1), b_XN.size(1)))
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
