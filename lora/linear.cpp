#include "lora/linear.h"

#include <torch/csrc/autograd/custom_function.h>

namespace moetune {
namespace {

const FrozenWeight& weight_at(const c10::IValue& address) {
  return *reinterpret_cast<const FrozenWeight*>(address.toInt());
}

at::Tensor as_rows(const at::Tensor& x) { return x.dim() == 2 ? x : x.reshape({-1, x.size(-1)}); }

at::Tensor product(const at::Tensor& x, const FrozenWeight& weight, const std::optional<at::Tensor>& bias_O,
                   Wanted wanted) {
  if (wanted == Wanted::kNumbers) return at::linear(x, weight.dense(), bias_O);
  std::vector<int64_t> shape = x.sizes().vec();
  shape.back() = weight.dense().size(0);
  return without_numbers(shape, x.options());
}

struct FrozenMatmul : torch::autograd::Function<FrozenMatmul> {
  static at::Tensor forward(torch::autograd::AutogradContext* context, const at::Tensor& x, int64_t weight_address,
                            const std::optional<at::Tensor>& bias_O, Wanted wanted) {
    context->saved_data["weight"] = weight_address;
    context->saved_data["has_bias"] = bias_O.has_value();
    return product(x, weight_at(weight_address), bias_O, wanted);
  }
  static torch::autograd::variable_list backward(torch::autograd::AutogradContext* context,
                                                 torch::autograd::variable_list d_y) {
    at::Tensor d_x, d_bias;
    if (context->needs_input_grad(0)) d_x = d_y[0].matmul(weight_at(context->saved_data["weight"]).dense());
    if (context->saved_data["has_bias"].toBool() && context->needs_input_grad(1)) d_bias = as_rows(d_y[0]).sum(0);
    return {d_x, at::Tensor(), d_bias, at::Tensor()};
  }
};

/// An adapter beside a frozen weight, what its dropout is a function of, and what of the output is wanted.
struct AdaptedWeight {
  const FrozenWeight* weight;
  const Adapter* adapter;
  at::Tensor token_T;  ///< undefined without dropout
  StepRandom random;
  Wanted wanted = Wanted::kNumbers;
};

/// s a b, in the dtype of both.
at::Tensor scaled_product(double scale, const at::Tensor& a, const at::Tensor& b) {
  // With beta = 0 what lies in the result is not read.
  return at::empty({a.size(0), b.size(1)}, a.options()).addmm_(a, b, /*beta=*/0, /*alpha=*/scale);
}

/// y + scale a b in y's place: on GPUs within the product. On CPUs the product is rounded by itself, as PEFT's is, with
/// which they are compared to rounding.
at::Tensor add_product(at::Tensor y, double scale, const at::Tensor& a, const at::Tensor& b) {
  return y.is_cuda() ? y.addmm_(a, b, /*beta=*/1, /*alpha=*/scale) : y.add_(a.mm(b), scale);
}

// y = x W^T + b + s low B^T, low = drop(x) A^T. On GPUs the product with B adds into y, and in the backward pass that
// with A into d x, inside the matrix products: no pass of their own over [T, O] or [T, I].
//   d low = s d y B,  d x = d y W + drop(d low A),  d A = d low^T drop(x),  d B = s d y^T low
// drop() multiplies by a mask that is drawn again, so it is its own transpose and neither mask nor product is kept.
struct AdaptedMatmul : torch::autograd::Function<AdaptedMatmul> {
  static at::Tensor forward(torch::autograd::AutogradContext* context, const at::Tensor& x_TI, const at::Tensor& a_RI,
                            const at::Tensor& b_OR, const std::optional<at::Tensor>& bias_O,
                            const AdaptedWeight& adapted) {
    const Adapter& adapter = *adapted.adapter;
    const at::Tensor low_TR = adapter.drop(x_TI, adapted.token_T, adapted.random).matmul(a_RI.t());
    context->save_for_backward({x_TI, a_RI, b_OR, low_TR});
    auto& data = context->saved_data;
    data["weight"] = reinterpret_cast<int64_t>(adapted.weight);
    data["adapter"] = reinterpret_cast<int64_t>(adapted.adapter);
    data["has_bias"] = bias_O.has_value();
    if (adapter.drops(adapted.random)) {
      data["token"] = adapted.token_T;
      data["seed"] = static_cast<int64_t>(adapted.random.seed);
      data["step"] = adapted.random.step;
    }
    const at::Tensor y_TO = product(x_TI, *adapted.weight, bias_O, adapted.wanted);
    return adapted.wanted == Wanted::kNumbers ? add_product(y_TO, adapter.scale(), low_TR, b_OR.t()) : y_TO;
  }

  static torch::autograd::variable_list backward(torch::autograd::AutogradContext* context,
                                                 torch::autograd::variable_list d_y) {
    auto& data = context->saved_data;
    const auto saved = context->get_saved_variables();
    const at::Tensor &x_TI = saved[0], &a_RI = saved[1], &b_OR = saved[2], &low_TR = saved[3], &d_y_TO = d_y[0];
    const Adapter& adapter = *reinterpret_cast<const Adapter*>(data["adapter"].toInt());
    at::Tensor token_T;
    StepRandom random;  // without a token: no dropout
    if (data.count("token") > 0) {
      token_T = data["token"].toTensor();
      random = {static_cast<uint64_t>(data["seed"].toInt()), data["step"].toInt(), /*training=*/true};
    }
    const bool needs_x = context->needs_input_grad(0), needs_a = context->needs_input_grad(1);
    at::Tensor d_x, d_a, d_b, d_bias, d_low_TR;
    if (needs_x || needs_a) d_low_TR = scaled_product(adapter.scale(), d_y_TO, b_OR);
    if (needs_a) d_a = d_low_TR.t().matmul(adapter.drop(x_TI, token_T, random));
    if (context->needs_input_grad(2)) d_b = scaled_product(adapter.scale(), d_y_TO.t(), low_TR);
    if (data["has_bias"].toBool() && context->needs_input_grad(3)) d_bias = d_y_TO.sum(0);
    if (needs_x) {
      d_x = d_y_TO.matmul(weight_at(data["weight"]).dense());
      if (adapter.drops(random)) d_x.add_(adapter.drop(d_low_TR.matmul(a_RI), token_T, random));
      else d_x = add_product(d_x, 1.0, d_low_TR, a_RI);
    }
    return {d_x, d_a, d_b, d_bias, at::Tensor()};
  }
};

std::optional<at::Tensor> if_defined(const at::Tensor& tensor) {
  return tensor.defined() ? std::optional(tensor) : std::nullopt;
}

}  // namespace

at::Tensor frozen_matmul(const at::Tensor& x_TI, const FrozenWeight& weight, const at::Tensor& bias_O) {
  return FrozenMatmul::apply(x_TI, reinterpret_cast<int64_t>(&weight), if_defined(bias_O), Wanted::kNumbers);
}

Linear::Linear(std::unique_ptr<FrozenWeight> frozen, std::unique_ptr<Adapter> adapter, at::Tensor bias_O,
               OutputRange used)
    : frozen_(std::move(frozen)), adapter_(std::move(adapter)), bias_(std::move(bias_O)), used_(used) {}

Linear::Linear(Parameter& trained, at::Tensor bias_O, OutputRange used)
    : trained_(&trained), bias_(std::move(bias_O)), used_(used) {}

at::Tensor Linear::forward(const at::Tensor& x_TI, const at::Tensor& token_T, const StepRandom& random,
                           Wanted wanted) const {
  if (trained_ != nullptr) return at::linear(x_TI, used_.of(trained_->working), used_.of(bias_));
  if (!adapter_) {
    return FrozenMatmul::apply(x_TI, reinterpret_cast<int64_t>(frozen_.get()), if_defined(used_.of(bias_)), wanted);
  }
  return AdaptedMatmul::apply(x_TI, adapter_->a().working, used_.of(adapter_->b().working), if_defined(used_.of(bias_)),
                              AdaptedWeight{frozen_.get(), adapter_.get(), token_T, random, wanted});
}

}  // namespace moetune
