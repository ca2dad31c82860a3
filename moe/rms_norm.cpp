#include "moe/rms_norm.h"

#include <torch/csrc/autograd/custom_function.h>

namespace moetune {
namespace {

at::ScalarType statistics_dtype(const at::Tensor& x) {
  return x.scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
}

struct RmsNorm : torch::autograd::Function<RmsNorm> {
  static at::Tensor forward(torch::autograd::AutogradContext* context, const at::Tensor& x, const at::Tensor& weight,
                            double eps) {
    at::Tensor wide = x.to(statistics_dtype(x));
    at::Tensor inverse_rms = wide.square().mean(-1, true).add_(eps).rsqrt_();
    context->save_for_backward({x, weight, inverse_rms});
    return (wide * inverse_rms).to(x.scalar_type()) * weight;
  }
  // With n = x r, r = rsqrt(mean(x^2) + eps), g = dy * weight:  dx = r (g - n mean(g n)),  d weight = sum(dy n).
  static torch::autograd::variable_list backward(torch::autograd::AutogradContext* context,
                                                 torch::autograd::variable_list d_y) {
    auto saved = context->get_saved_variables();
    const at::Tensor &x = saved[0], &weight = saved[1], &inverse_rms = saved[2];
    at::Tensor normed = x.to(statistics_dtype(x)).mul(inverse_rms);
    at::Tensor d_normed = (d_y[0] * weight).to(normed.scalar_type());
    at::Tensor d_x = (d_normed - normed * (d_normed * normed).mean(-1, true)).mul_(inverse_rms).to(x.scalar_type());
    at::Tensor d_weight;
    if (context->needs_input_grad(1)) {
      d_weight =
          (d_y[0].to(normed.scalar_type()) * normed).reshape({-1, weight.size(0)}).sum(0).to(weight.scalar_type());
    }
    return {d_x, d_weight, at::Tensor()};
  }
};

}  // namespace

at::Tensor rms_norm(const at::Tensor& x_TD, const at::Tensor& weight_D, double eps) {
  return RmsNorm::apply(x_TD, weight_D, eps);
}

}  // namespace moetune
