#include "parallel/comm/tensor_axis.h"

#include <torch/csrc/autograd/custom_function.h>

#include "parallel/base/error.h"
#include "parallel/comm/communicator.h"
#include "parallel/device/stream_timer.h"

namespace moetune {

/// The group and the time spent in it.
struct AxisGroup {
  explicit AxisGroup(Communicator& group) : group(group), timer(group.device()) {}

  at::Tensor gathered(const at::Tensor& x_TC) {
    const StreamTimer::Piece piece(timer);
    at::Tensor out = at::empty(with_rows(x_TC, group.size() * x_TC.size(0)), x_TC.options());
    group.all_gather(out, x_TC.contiguous());
    return out;
  }

  at::Tensor scattered(const at::Tensor& partial_UC, int64_t rows) {
    const StreamTimer::Piece piece(timer);
    at::Tensor padded = partial_UC.contiguous();
    const int64_t num_rows = partial_UC.size(0), all = group.size() * rows;
    if (all > num_rows) {
      padded = at::empty(with_rows(partial_UC, all), partial_UC.options());
      padded.narrow(0, 0, num_rows).copy_(partial_UC);
      padded.narrow(0, num_rows, all - num_rows).zero_();
    }
    at::Tensor out = at::empty(with_rows(partial_UC, rows), partial_UC.options());
    group.reduce_scatter_sum(out, padded);
    return out;
  }

  static std::vector<int64_t> with_rows(const at::Tensor& x, int64_t rows) {
    std::vector<int64_t> shape = x.sizes().vec();
    shape[0] = rows;
    return shape;
  }

  Communicator& group;
  StreamTimer timer;
};

namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

AxisGroup& group_of(AutogradContext* context) {
  return *reinterpret_cast<AxisGroup*>(context->saved_data["group"].toInt());
}

struct GatherRows : torch::autograd::Function<GatherRows> {
  static at::Tensor forward(AutogradContext* context, const at::Tensor& x_TC, int64_t group) {
    context->saved_data["group"] = group;
    return group_of(context).gathered(x_TC);
  }
  static variable_list backward(AutogradContext* context, variable_list d) {
    AxisGroup& axis = group_of(context);
    return {axis.scattered(d[0], d[0].size(0) / axis.group.size()), at::Tensor()};
  }
};

struct ReduceScatterRows : torch::autograd::Function<ReduceScatterRows> {
  static at::Tensor forward(AutogradContext* context, const at::Tensor& partial_UC, int64_t group, int64_t rows,
                            Wanted wanted) {
    context->saved_data["group"] = group;
    context->saved_data["num_rows"] = partial_UC.size(0);
    if (wanted == Wanted::kGraph) {
      return without_numbers(AxisGroup::with_rows(partial_UC, rows), partial_UC.options());
    }
    return group_of(context).scattered(partial_UC, rows);
  }
  static variable_list backward(AutogradContext* context, variable_list d) {
    return {group_of(context).gathered(d[0]).narrow(0, 0, context->saved_data["num_rows"].toInt()), at::Tensor(),
            at::Tensor(), at::Tensor()};
  }
};

int64_t address(const std::shared_ptr<AxisGroup>& group) { return reinterpret_cast<int64_t>(group.get()); }

}  // namespace

TensorAxis::TensorAxis(Communicator& group)
    : group_(group.size() > 1 ? std::make_shared<AxisGroup>(group) : nullptr),
      size_(group.size()),
      index_(group.rank()) {}

at::Tensor TensorAxis::gather_rows(const at::Tensor& x_TC, int64_t num_rows) const {
  at::Tensor all = group_ == nullptr ? x_TC : GatherRows::apply(x_TC, address(group_));
  MT_CHECK(num_rows <= all.size(0), num_rows, " rows of ", size_, " times ", x_TC.size(0));
  return num_rows == all.size(0) ? all : all.narrow(0, 0, num_rows);
}

std::vector<at::Tensor> TensorAxis::gather_rows(const std::vector<at::Tensor>& parts_TC, int64_t num_rows) const {
  std::vector<at::Tensor> gathered;
  if (group_ == nullptr) {
    for (const at::Tensor& part : parts_TC) gathered.push_back(gather_rows(part, num_rows));
    return gathered;
  }
  std::vector<int64_t> widths;
  for (const at::Tensor& part : parts_TC) widths.push_back(part.size(1));
  return gather_rows(at::cat(parts_TC, 1), num_rows).split_with_sizes(widths, 1);
}

at::Tensor TensorAxis::reduce_scatter_rows(const at::Tensor& partial_UC, Wanted wanted) const {
  if (group_ == nullptr) return partial_UC;
  return ReduceScatterRows::apply(partial_UC, address(group_), rows_of(partial_UC.size(0)), wanted);
}

void TensorAxis::sum(const at::Tensor& tensor) const {
  if (group_ == nullptr) return;
  const StreamTimer::Piece piece(group_->timer);
  group_->group.all_reduce_sum(tensor);
}

void TensorAxis::max(const at::Tensor& tensor) const {
  if (group_ == nullptr) return;
  const StreamTimer::Piece piece(group_->timer);
  group_->group.all_reduce_max(tensor);
}

double TensorAxis::take_s() const { return group_ == nullptr ? 0.0 : group_->timer.take_s(); }

}  // namespace moetune
