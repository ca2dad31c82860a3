#include "trainer/optimizer.h"

namespace moetune {

Optimizer::Optimizer(ParameterSet& parameters, const OptimizerOptions& options) : parameters_(parameters), options_(options) {
  for (const Parameter& parameter : parameters.all()) moments_.push_back({at::zeros_like(parameter.master()), at::zeros_like(parameter.master())});
}

int64_t Optimizer::host_bytes(int64_t elements, at::ScalarType compute) {
  return elements * 3 * static_cast<int64_t>(c10::elementSize(accumulate_dtype(compute)));
}

void Optimizer::step(double lr, double gradient_factor) {
  at::NoGradGuard no_grad;
  size_t next = 0;
  for (Parameter& parameter : parameters_.all()) {
    Moments& moments = moments_[next++];
    at::Tensor gradient = parameter.gradient().cpu();
    if (gradient_factor != 1.0) gradient.mul_(gradient_factor);
    const double own_lr = parameter.info().role == Role::kAdapterB ? lr * options_.lr_b_ratio : lr;
    at::Tensor& master = parameter.master();
    // The kernel is told the number of this step, from 1.
    at::_fused_adamw_({master}, {gradient}, {moments.first}, {moments.second}, {}, {at::full({}, static_cast<double>(steps_taken_ + 1), at::kFloat)},
                      own_lr, options_.betas[0], options_.betas[1], options_.weight_decay, options_.eps, /*amsgrad=*/false, /*maximize=*/false);
    parameter.refresh_working();
    parameter.clear_gradient();
  }
  ++steps_taken_;
}

}  // namespace moetune
