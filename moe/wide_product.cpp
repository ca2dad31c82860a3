#include "moe/wide_product.h"

#include <torch/csrc/autograd/custom_function.h>

namespace moetune {
namespace {

constexpr int64_t kExact = 3;  // parts that hold an fp32 number whole
constexpr int64_t kClose = 2;  // parts that are 2^-16 from it, for a result that is rounded to bf16

/// a b of bf16 matrices, in fp32.
at::Tensor product(const at::Tensor& a, const at::Tensor& b) {
  if (a.size(1) == 0 || a.size(0) == 0) return at::zeros({a.size(0), b.size(1)}, a.options().dtype(at::kFloat));
  return at::mm(a, b, at::kFloat);
}

/// The sum of the `count` runs of equal length that dim `dim` consists of.
at::Tensor sum_of_runs(const at::Tensor& x, int64_t dim, int64_t count) {
  return count == 1 ? x : x.unflatten(dim, {count, x.size(dim) / count}).sum(dim);
}

std::vector<at::Tensor> parts_of_weight(const at::Tensor& weight, int64_t count) {
  if (weight.scalar_type() == at::kBFloat16) return {weight};
  return bf16_parts(weight.to(at::kFloat), count);
}

struct WideLinear : torch::autograd::Function<WideLinear> {
  static at::Tensor forward(torch::autograd::AutogradContext* context, const at::Tensor& x_TI,
                            const at::Tensor& weight_OI) {
    context->save_for_backward({x_TI, weight_OI});
    const std::vector<at::Tensor> parts = parts_of_weight(weight_OI, kExact);
    const at::Tensor y_TC = product(x_TI, at::cat(parts, 0).t());
    return sum_of_runs(y_TC, 1, static_cast<int64_t>(parts.size()));
  }

  static torch::autograd::variable_list backward(torch::autograd::AutogradContext* context,
                                                 torch::autograd::variable_list d_y) {
    const auto saved = context->get_saved_variables();
    const at::Tensor &x_TI = saved[0], &weight_OI = saved[1];
    at::Tensor d_x, d_weight;
    if (context->needs_input_grad(0)) {
      const std::vector<at::Tensor> d = bf16_parts(d_y[0], kClose), weight = parts_of_weight(weight_OI, kClose);
      // (d0 + d1) (w0 + w1) but for d1 w1, one product with the summands side by side.
      std::vector<at::Tensor> left{d[0], d[1]}, right{weight[0], weight[0]};
      if (weight.size() > 1) {
        left.push_back(d[0]);
        right.push_back(weight[1]);
      }
      d_x = at::cat(left, 1).mm(at::cat(right, 0));
    }
    if (context->needs_input_grad(1)) {
      const at::Tensor d_TC = at::cat(bf16_parts(d_y[0], kExact), 1);
      d_weight = sum_of_runs(product(d_TC.t(), x_TI), 0, kExact).to(weight_OI.scalar_type());
    }
    return {d_x, d_weight};
  }
};

}  // namespace

std::vector<at::Tensor> bf16_parts(const at::Tensor& x, int64_t count) {
  std::vector<at::Tensor> parts;
  at::Tensor rest = x;
  while (static_cast<int64_t>(parts.size()) < count) {
    parts.push_back(rest.to(at::kBFloat16));
    if (static_cast<int64_t>(parts.size()) < count) rest = rest - parts.back();  // exact: of neighbouring binades
  }
  return parts;
}

at::Tensor wide_linear(const at::Tensor& x_TI, const at::Tensor& weight_OI) {
  if (x_TI.is_cuda() && x_TI.scalar_type() == at::kBFloat16) return WideLinear::apply(x_TI, weight_OI);
  const at::ScalarType wide = x_TI.scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
  return at::linear(x_TI.to(wide), weight_OI.to(wide));
}

}  // namespace moetune
