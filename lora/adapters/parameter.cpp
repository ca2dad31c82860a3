#include "lora/adapters/parameter.h"

#include <algorithm>

#include "parallel/base/error.h"

namespace moetune {

std::vector<int64_t> TensorPart::whole_shape(at::IntArrayRef shape) const {
  std::vector<int64_t> whole = shape.vec();
  if (!is_whole()) whole[dim] = total;
  return whole;
}

Parameter::Parameter(ParameterInfo info, const at::Tensor& initial, at::Device device, at::ScalarType compute)
    : info_(std::move(info)),
      master_(initial.detach().to(at::kCPU, accumulate_dtype(compute), false, /*copy=*/true).contiguous()) {
  working = master_.to(device, compute, false, /*copy=*/true).requires_grad_();
}

at::ScalarType Parameter::wide_dtype() const { return accumulate_dtype(working.scalar_type()); }

at::Tensor& Parameter::master() {
  MT_CHECK(master_.defined(), info_.name, ": the optimizer holds the master");
  return master_;
}

void Parameter::refresh_working() {
  at::NoGradGuard no_grad;
  working.copy_(master(), /*non_blocking=*/true);
}

void Parameter::add_gradient(const at::Tensor& gradient) {
  if (!gradient.defined()) return;
  at::NoGradGuard no_grad;
  if (gradient_.defined()) gradient_.add_(gradient);
  else gradient_ = gradient.to(wide_dtype(), false, /*copy=*/true).contiguous();
}

at::Tensor& Parameter::gradient() {
  if (!gradient_.defined()) {
    gradient_ = at::zeros(working.sizes(), working.options().dtype(wide_dtype()).requires_grad(false));
  }
  return gradient_;
}

int64_t Parameter::working_bytes(int64_t elements, at::ScalarType compute) {
  return elements * static_cast<int64_t>(c10::elementSize(compute));
}

int64_t Parameter::gradient_bytes(int64_t elements, at::ScalarType compute) {
  return elements * static_cast<int64_t>(c10::elementSize(accumulate_dtype(compute)));
}

Parameter& ParameterSet::add(ParameterInfo info, const at::Tensor& initial) {
  return parameters_.emplace_back(std::move(info), initial, device_, compute_);
}

std::vector<Parameter*> ParameterSet::of_layer(LayerId layer) {
  std::vector<Parameter*> found;
  for (Parameter& parameter : parameters_) {
    if (parameter.info().layer == layer) found.push_back(&parameter);
  }
  return found;
}

LayerId ParameterSet::lowest_layer(LayerId otherwise) const {
  LayerId lowest = otherwise;
  for (const Parameter& parameter : parameters_) lowest = std::min(lowest, parameter.info().layer);
  return lowest;
}

}  // namespace moetune
