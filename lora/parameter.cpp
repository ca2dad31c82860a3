#include "lora/parameter.h"

#include <algorithm>

#include "parallel/base/error.h"

namespace moetune {

std::vector<int64_t> TensorPart::whole_shape(at::IntArrayRef shape) const {
  std::vector<int64_t> whole = shape.vec();
  if (!is_whole()) whole[dim] = total;
  return whole;
}

Parameter::Parameter(ParameterInfo info, const at::Tensor& initial, at::Device device, at::ScalarType compute)
    : info_(std::move(info)), master_(initial.detach().to(at::kCPU, accumulate_dtype(compute), false, /*copy=*/true).contiguous()) {
  working = master_.to(device, compute, false, /*copy=*/true).requires_grad_();
}

void Parameter::refresh_working() {
  at::NoGradGuard no_grad;
  working.copy_(master_, /*non_blocking=*/true);
}

void Parameter::add_gradient(const at::Tensor& gradient) {
  if (!gradient.defined()) return;
  at::NoGradGuard no_grad;
  if (gradient_is_zero_ && gradient_.defined()) {
    gradient_.copy_(gradient);
  } else if (gradient_is_zero_) {
    gradient_ = gradient.to(master_.scalar_type(), false, /*copy=*/true).contiguous();
  } else {
    gradient_.add_(gradient);
  }
  gradient_is_zero_ = false;
}

at::Tensor& Parameter::gradient() {
  if (!gradient_.defined()) gradient_ = at::zeros(master_.sizes(), working.options().dtype(master_.scalar_type()).requires_grad(false));
  else if (gradient_is_zero_) gradient_.zero_();
  gradient_is_zero_ = false;
  return gradient_;
}

void Parameter::clear_gradient() { gradient_is_zero_ = true; }

int64_t Parameter::working_bytes(int64_t elements, at::ScalarType compute) { return elements * static_cast<int64_t>(c10::elementSize(compute)); }

int64_t Parameter::gradient_bytes(int64_t elements, at::ScalarType compute) {
  return elements * static_cast<int64_t>(c10::elementSize(accumulate_dtype(compute)));
}

Parameter& ParameterSet::add(ParameterInfo info, const at::Tensor& initial) {
  return parameters_.emplace_back(std::move(info), initial, device_, compute_);
}

std::vector<Parameter*> ParameterSet::of_layer(int64_t layer) {
  std::vector<Parameter*> found;
  for (Parameter& parameter : parameters_) {
    if (parameter.info().layer == layer) found.push_back(&parameter);
  }
  return found;
}

int64_t ParameterSet::lowest_layer(int64_t otherwise) const {
  int64_t lowest = otherwise;
  for (const Parameter& parameter : parameters_) lowest = std::min(lowest, parameter.info().layer);
  return lowest;
}

}  // namespace moetune
