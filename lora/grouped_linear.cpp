#include "lora/grouped_linear.h"

namespace moetune {

GroupedLinear::GroupedLinear(std::unique_ptr<FrozenWeight> frozen, std::unique_ptr<Adapter> adapter)
    : frozen_(std::move(frozen)), adapter_(std::move(adapter)) {}

GroupedLinear::GroupedLinear(Parameter& trained) : trained_(&trained) {}

int64_t GroupedLinear::scratch_elements_per_expert() const {
  return frozen_ ? frozen_->scratch_elements() / frozen_->shape().units : 0;
}

at::Tensor GroupedLinear::dense(int64_t first, int64_t count, Scratch& scratch, DequantCounters& counters) const {
  if (trained_ != nullptr) return trained_->working.detach().narrow(0, first, count);
  return frozen_->dense_units(first, count, scratch, counters);
}

at::Tensor GroupedLinear::forward(const at::Tensor& x_XI, const at::Tensor& dense_eOI, const ExpertChunk& chunk,
                                  const at::Tensor& token_X, const StepRandom& random) const {
  at::NoGradGuard no_grad;
  at::Tensor y_XO = grouped_mm(x_XI, dense_eOI.transpose(1, 2), chunk.groups);
  if (!adapter_) return y_XO;
  at::Tensor a_eRI = adapter_->a().working.narrow(0, chunk.first, chunk.count);
  at::Tensor b_eOR = adapter_->b().working.narrow(0, chunk.first, chunk.count);
  at::Tensor low_XR = grouped_mm(adapter_->drop(x_XI, token_X, random), a_eRI.transpose(1, 2), chunk.groups);
  return y_XO.add_(grouped_mm(low_XR, b_eOR.transpose(1, 2), chunk.groups), adapter_->scale());
}

at::Tensor GroupedLinear::backward(const at::Tensor& dy_XO, const at::Tensor& x_XI, const at::Tensor& dense_eOI,
                                   const ExpertChunk& chunk, const at::Tensor& token_X, const StepRandom& random) {
  at::NoGradGuard no_grad;
  at::Tensor dx_XI = grouped_mm(dy_XO, dense_eOI, chunk.groups);
  if (trained_ != nullptr) {
    trained_->gradient().narrow(0, chunk.first, chunk.count).add_(grouped_outer(dy_XO, x_XI, chunk.groups));
  }
  if (!adapter_) return dx_XI;
  at::Tensor a_eRI = adapter_->a().working.narrow(0, chunk.first, chunk.count);
  at::Tensor b_eOR = adapter_->b().working.narrow(0, chunk.first, chunk.count);
  const double scale = adapter_->scale();
  at::Tensor dropped_XI = adapter_->drop(x_XI, token_X, random);
  at::Tensor low_XR = grouped_mm(dropped_XI, a_eRI.transpose(1, 2), chunk.groups);
  at::Tensor d_low_XR = grouped_mm(dy_XO, b_eOR, chunk.groups).mul_(scale);
  adapter_->b().gradient().narrow(0, chunk.first, chunk.count).add_(grouped_outer(dy_XO, low_XR, chunk.groups), scale);
  adapter_->a().gradient().narrow(0, chunk.first, chunk.count).add_(grouped_outer(d_low_XR, dropped_XI, chunk.groups));
  return dx_XI.add_(adapter_->drop(grouped_mm(d_low_XR, a_eRI, chunk.groups), token_X, random));
}

}  // namespace moetune
