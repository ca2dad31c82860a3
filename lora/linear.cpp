#include "lora/linear.h"

#include <torch/csrc/autograd/custom_function.h>

namespace moetune {
namespace {

struct FrozenMatmul : torch::autograd::Function<FrozenMatmul> {
  static at::Tensor forward(torch::autograd::AutogradContext* context, const at::Tensor& x, int64_t weight_address) {
    context->saved_data["weight"] = weight_address;
    return at::linear(x, reinterpret_cast<const FrozenWeight*>(weight_address)->dense());
  }
  static torch::autograd::variable_list backward(torch::autograd::AutogradContext* context,
                                                 torch::autograd::variable_list d_y) {
    const auto* weight = reinterpret_cast<const FrozenWeight*>(context->saved_data["weight"].toInt());
    return {d_y[0].matmul(weight->dense()), at::Tensor()};
  }
};

}  // namespace

at::Tensor frozen_matmul(const at::Tensor& x_TI, const FrozenWeight& weight) {
  return FrozenMatmul::apply(x_TI, reinterpret_cast<int64_t>(&weight));
}

Linear::Linear(std::unique_ptr<FrozenWeight> frozen, std::unique_ptr<Adapter> adapter)
    : frozen_(std::move(frozen)), adapter_(std::move(adapter)) {}

Linear::Linear(Parameter& trained) : trained_(&trained) {}

at::Tensor Linear::forward(const at::Tensor& x_TI, const at::Tensor& token_T, const StepRandom& random) const {
  if (trained_ != nullptr) return at::linear(x_TI, trained_->working);
  at::Tensor y_TO = frozen_matmul(x_TI, *frozen_);
  if (!adapter_) return y_TO;
  at::Tensor low_TR = at::linear(adapter_->drop(x_TI, token_T, random), adapter_->a().working);
  return at::add(y_TO, at::linear(low_TR, adapter_->b().working), adapter_->scale());
}

}  // namespace moetune
