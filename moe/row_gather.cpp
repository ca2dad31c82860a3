#include "moe/row_gather.h"

#include <algorithm>

#include "moe/row_gather_kernels.h"
#include "parallel/base/error.h"
#include "parallel/device/row_kernels.h"

namespace moetune {

at::Tensor places_of(const at::Tensor& slot_X, int64_t num_rows, int64_t top_k) {
  MT_CHECK(slot_X.size(0) < int64_t{1} << 31, slot_X.size(0), " routed rows are more than places are counted in");
  const auto counted = slot_X.options().dtype(at::kInt);
  at::Tensor place_YK = at::full({num_rows, top_k}, -1, counted);
  place_YK.view(-1).index_copy_(0, slot_X, at::arange(slot_X.size(0), counted));
  return place_YK;
}

at::Tensor gather_rows(const at::Tensor& from_YD, const at::Tensor& row_X, int64_t columns) {
  const int64_t rows = row_X.size(0), D = from_YD.size(1);
  if (!from_YD.is_cuda() && columns <= D) return from_YD.index_select(0, row_X);
  at::Tensor to_XD = at::empty({rows, std::max(columns, D)}, from_YD.options());
  if (!from_YD.is_cuda()) {
    to_XD.narrow(1, 0, D).copy_(from_YD.index_select(0, row_X));
    return to_XD;
  }
  MT_CHECK(from_YD.stride(1) == 1 && row_X.is_contiguous() && row_X.scalar_type() == at::kLong,
           "rows whose numbers do not lie apart are needed, and int64 indices");
  launch_rows(from_YD, [&](auto number, cudaStream_t stream) {
    using Number = decltype(number);
    gather_rows_cuda(numbers_of<const Number>(from_YD), from_YD.stride(0), row_X.const_data_ptr<int64_t>(), rows, D,
                     numbers_of<Number>(to_XD), to_XD.stride(0), stream);
  });
  return to_XD;
}

void gather_sum(const at::Tensor& rows_XD, const RowRun& run, at::Tensor& sum_YD) {
  MT_CHECK(rows_XD.size(0) == run.row_X.size(0) && rows_XD.size(1) == sum_YD.size(1) &&
               rows_XD.scalar_type() == sum_YD.scalar_type(),
           "rows ", rows_XD.toString(), " ", rows_XD.sizes(), ", of them ", run.row_X.size(0), " with a place; sums ",
           sum_YD.toString(), " ", sum_YD.sizes());
  if (!sum_YD.is_cuda()) {
    sum_YD.index_add_(0, run.row_X, rows_XD);
    return;
  }
  const at::Tensor& place_YK = run.place_YK;
  MT_CHECK(place_YK.defined() && place_YK.scalar_type() == at::kInt && place_YK.is_contiguous() &&
               place_YK.size(0) == sum_YD.size(0) && sum_YD.is_contiguous() && rows_XD.stride(1) == 1,
           "places of ", sum_YD.size(0), " rows are needed, and rows whose numbers do not lie apart");
  launch_rows(sum_YD, [&](auto number, cudaStream_t stream) {
    using Number = decltype(number);
    gather_sum_cuda(numbers_of<const Number>(rows_XD), rows_XD.stride(0), place_YK.const_data_ptr<int32_t>(),
                    place_YK.size(1), run.first, rows_XD.size(0), sum_YD.size(0), sum_YD.size(1),
                    numbers_of<Number>(sum_YD), stream);
  });
}

}  // namespace moetune
