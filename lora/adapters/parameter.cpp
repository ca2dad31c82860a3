#include "lora/adapters/parameter.h"

#include <algorithm>

#include "parallel/base/error.h"

namespace moetune {

std::vector<int64_t> TensorPart::whole_shape(at::IntArrayRef shape) const {
  std::vector<int64_t> whole = shape.vec();
  if (!is_whole()) whole[dim] = total;
  return whole;
}

void ParameterInfo::hold_experts(const std::vector<int64_t>& chosen) {
  if (chosen.empty()) return;
  first_expert = std::lower_bound(chosen.begin(), chosen.end(), first_expert) - chosen.begin();
  num_experts = static_cast<int64_t>(chosen.size());
  experts = chosen;
}

Parameter::Parameter(ParameterInfo info, const at::Tensor& initial, at::Device device, at::ScalarType compute,
                     at::ScalarType gradients)
    : info_(std::move(info)),
      gradients_(gradients),
      master_(initial.detach().to(at::kCPU, accumulate_dtype(compute), false, /*copy=*/true).contiguous()) {
  working = master_.to(device, compute, false, /*copy=*/true).requires_grad_();
}

at::ScalarType Parameter::wide_dtype() const { return accumulate_dtype(working.scalar_type()); }

at::Tensor& Parameter::master() {
  MT_CHECK(master_.defined(), info_.name, ": the optimizer holds the master");
  return master_;
}

void Parameter::lay_into(const c10::Storage& storage, int64_t first, bool stays) {
  stays_ = stays;
  at::NoGradGuard no_grad;
  at::Tensor place = at::empty({0}, working.options().requires_grad(false));
  working.set_data(place.set_(storage, first, working.sizes(), working.strides()));
}

void Parameter::refresh_working() {
  at::NoGradGuard no_grad;
  working.copy_(master(), /*non_blocking=*/true);
}

void Parameter::add_gradient(const at::Tensor& gradient) {
  if (!gradient.defined()) return;
  at::NoGradGuard no_grad;
  if (gradient_.defined()) gradient_.add_(gradient);
  else gradient_ = gradient.to(gradients_, false, /*copy=*/true).contiguous();
}

at::Tensor& Parameter::gradient() {
  if (!gradient_.defined()) {
    gradient_ = at::zeros(working.sizes(), working.options().dtype(gradients_).requires_grad(false));
  }
  return gradient_;
}

int64_t Parameter::working_bytes(int64_t elements, at::ScalarType compute) {
  return elements * static_cast<int64_t>(c10::elementSize(compute));
}

at::ScalarType ParameterSet::gradient_dtype(LayerId layer, Role role, bool decays, at::ScalarType narrow,
                                            at::ScalarType compute) {
  return layer.is_block() && role == Role::kWeight && decays ? narrow : accumulate_dtype(compute);
}

Parameter& ParameterSet::add(ParameterInfo info, const at::Tensor& initial) {
  const at::ScalarType gradients = gradient_dtype(info.layer, info.role, info.decays, gradients_, compute_);
  return parameters_.emplace_back(std::move(info), initial, device_, compute_, gradients);
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
