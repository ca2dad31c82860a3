#include "lora/linear.h"

#include <torch/csrc/autograd/custom_function.h>

namespace moetune {
namespace {

struct FrozenMatmul : torch::autograd::Function<FrozenMatmul> {
  static at::Tensor forward(torch::autograd::AutogradContext* context, const at::Tensor& x, int64_t weight_address,
                            const std::optional<at::Tensor>& bias_O) {
    context->saved_data["weight"] = weight_address;
    context->saved_data["has_bias"] = bias_O.has_value();
    return at::linear(x, reinterpret_cast<const FrozenWeight*>(weight_address)->dense(), bias_O);
  }
  static torch::autograd::variable_list backward(torch::autograd::AutogradContext* context,
                                                 torch::autograd::variable_list d_y) {
    const auto* weight = reinterpret_cast<const FrozenWeight*>(context->saved_data["weight"].toInt());
    at::Tensor d_bias;
    if (context->saved_data["has_bias"].toBool() && context->needs_input_grad(1)) {
      d_bias = d_y[0].reshape({-1, d_y[0].size(-1)}).sum(0);
    }
    return {d_y[0].matmul(weight->dense()), at::Tensor(), d_bias};
  }
};

}  // namespace

at::Tensor frozen_matmul(const at::Tensor& x_TI, const FrozenWeight& weight, const at::Tensor& bias_O) {
  return FrozenMatmul::apply(x_TI, reinterpret_cast<int64_t>(&weight),
                             bias_O.defined() ? std::optional(bias_O) : std::nullopt);
}

Linear::Linear(std::unique_ptr<FrozenWeight> frozen, std::unique_ptr<Adapter> adapter, at::Tensor bias_O,
               OutputRange used)
    : frozen_(std::move(frozen)), adapter_(std::move(adapter)), bias_(std::move(bias_O)), used_(used) {}

Linear::Linear(Parameter& trained, at::Tensor bias_O, OutputRange used)
    : trained_(&trained), bias_(std::move(bias_O)), used_(used) {}

at::Tensor Linear::forward(const at::Tensor& x_TI, const at::Tensor& token_T, const StepRandom& random) const {
  if (trained_ != nullptr) return at::linear(x_TI, used_.of(trained_->working), used_.of(bias_));
  at::Tensor y_TO = frozen_matmul(x_TI, *frozen_, used_.of(bias_));
  if (!adapter_) return y_TO;
  at::Tensor low_TR = at::linear(adapter_->drop(x_TI, token_T, random), adapter_->a().working);
  return at::add(y_TO, at::linear(low_TR, used_.of(adapter_->b().working)), adapter_->scale());
}

}  // namespace moetune
