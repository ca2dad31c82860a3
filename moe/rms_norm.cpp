#include "moe/rms_norm.h"

#include <torch/csrc/autograd/custom_function.h>

#include <algorithm>

#include "moe/rms_norm_kernels.h"
#include "parallel/base/ceil_div.h"
#include "parallel/device/row_kernels.h"

namespace moetune {
namespace {

at::ScalarType statistics_dtype(const at::Tensor& x) {
  return x.scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
}

/// Rows [N, D] for a kernel; undefined: none.
template <typename Number>
StridedRows<Number> strided(const at::Tensor& rows) {
  if (!rows.defined()) return {};
  return {numbers_of<const Number>(rows), rows.stride(0)};
}

at::Tensor rows_of(const at::Tensor& x) { return x.defined() ? as_rows(x) : x; }

struct Normed {
  at::Tensor sum;  ///< x itself where nothing is added
  at::Tensor y;
  at::Tensor inverse_rms;  ///< [..., 1]
};

Normed plain_forward(const at::Tensor& x, const at::Tensor& added, const at::Tensor& weight, double eps) {
  const at::Tensor sum = added.defined() ? x + added : x;
  const at::Tensor wide = sum.to(statistics_dtype(sum));
  const at::Tensor inverse_rms = wide.square().mean(-1, true).add_(eps).rsqrt_();
  return {sum, (wide * inverse_rms).to(sum.scalar_type()) * weight, inverse_rms};
}

Normed forward(const at::Tensor& x, const at::Tensor& added, const at::Tensor& weight, double eps) {
  if (!has_row_kernels(x) || weight.scalar_type() != x.scalar_type()) return plain_forward(x, added, weight, eps);
  const at::Tensor x_ND = as_rows(x), added_ND = rows_of(added), weight_D = weight.contiguous();
  std::vector<int64_t> row_shape = x.sizes().vec();
  row_shape.back() = 1;
  const at::Tensor y = at::empty(x.sizes(), x.options()), sum = added.defined() ? at::empty_like(y) : x,
                   inverse_rms = at::empty(row_shape, x.options().dtype(statistics_dtype(x)));
  launch_rows(x, [&](auto number, cudaStream_t stream) {
    using Number = decltype(number);
    NormForward<Number> arguments;
    arguments.rows = x_ND.size(0);
    arguments.width = x_ND.size(1);
    arguments.x = strided<Number>(x_ND);
    arguments.added = strided<Number>(added_ND);
    arguments.weight = numbers_of<const Number>(weight_D);
    arguments.eps = eps;
    if (added.defined()) arguments.sum = numbers_of<Number>(sum);
    arguments.y = numbers_of<Number>(y);
    arguments.inverse_rms = numbers_of<Wide<Number>>(inverse_rms);
    rms_norm_forward_cuda(arguments, stream);
  });
  return {sum, y, inverse_rms};
}

// With n = x r, r = rsqrt(mean(x^2) + eps), g = dy * weight:  dx = r (g - n mean(g n)),  d weight = sum(dy n).
at::Tensor plain_d_x(const at::Tensor& x, const at::Tensor& weight, const at::Tensor& inverse_rms,
                     const at::Tensor& d_y, const at::Tensor& added) {
  const at::Tensor normed = x.to(statistics_dtype(x)).mul(inverse_rms);
  const at::Tensor d_normed = (d_y * weight).to(normed.scalar_type());
  const at::Tensor d_x = (d_normed - normed * (d_normed * normed).mean(-1, true)).mul_(inverse_rms).to(x.scalar_type());
  return added.defined() ? d_x + added : d_x;
}

/// Gradient of x by the norm, and `added` (undefined: none) to it.
at::Tensor d_x_of(const at::Tensor& x, const at::Tensor& weight, const at::Tensor& inverse_rms, const at::Tensor& d_y,
                  const at::Tensor& added) {
  if (!has_row_kernels(x) || weight.scalar_type() != x.scalar_type()) {
    return plain_d_x(x, weight, inverse_rms, d_y, added);
  }
  const at::Tensor x_ND = as_rows(x), d_y_ND = as_rows(d_y), added_ND = rows_of(added), weight_D = weight.contiguous();
  const at::Tensor d_x = at::empty(x.sizes(), x.options());
  launch_rows(x, [&](auto number, cudaStream_t stream) {
    using Number = decltype(number);
    NormBackward<Number> arguments;
    arguments.rows = x_ND.size(0);
    arguments.width = x_ND.size(1);
    arguments.x = strided<Number>(x_ND);
    arguments.d_y = strided<Number>(d_y_ND);
    arguments.added = strided<Number>(added_ND);
    arguments.weight = numbers_of<const Number>(weight_D);
    arguments.inverse_rms = numbers_of<const Wide<Number>>(inverse_rms);
    arguments.d_x = numbers_of<Number>(d_x);
    rms_norm_backward_cuda(arguments, stream);
  });
  return d_x;
}

at::Tensor d_weight_of(const at::Tensor& x, const at::Tensor& weight, const at::Tensor& inverse_rms,
                       const at::Tensor& d_y) {
  const at::ScalarType wide = inverse_rms.scalar_type();
  if (!has_row_kernels(x) || d_y.scalar_type() != x.scalar_type()) {
    const at::Tensor normed = x.to(wide).mul(inverse_rms);
    return (d_y.to(wide) * normed).reshape({-1, weight.size(0)}).sum(0).to(weight.scalar_type());
  }
  constexpr int64_t kLeastRows = 64, kMostChunks = 256;
  const at::Tensor x_ND = as_rows(x), d_y_ND = as_rows(d_y);
  const int64_t rows = x_ND.size(0), chunk_rows = std::max(kLeastRows, ceil_div(rows, kMostChunks));
  const at::Tensor partial_CD = at::empty({ceil_div(rows, chunk_rows), weight.size(0)}, inverse_rms.options());
  launch_rows(x, [&](auto number, cudaStream_t stream) {
    using Number = decltype(number);
    NormWeightGradient<Number> arguments;
    arguments.rows = rows;
    arguments.width = x_ND.size(1);
    arguments.x = strided<Number>(x_ND);
    arguments.d_y = strided<Number>(d_y_ND);
    arguments.inverse_rms = numbers_of<const Wide<Number>>(inverse_rms);
    arguments.chunk_rows = chunk_rows;
    arguments.partial = numbers_of<Wide<Number>>(partial_CD);
    rms_norm_weight_gradient_cuda(arguments, stream);
  });
  return partial_CD.sum(0).to(weight.scalar_type());
}

struct RmsNorm : torch::autograd::Function<RmsNorm> {
  static at::Tensor forward(torch::autograd::AutogradContext* context, const at::Tensor& x, const at::Tensor& weight,
                            double eps) {
    const Normed normed = moetune::forward(x, at::Tensor(), weight, eps);
    context->save_for_backward({x, weight, normed.inverse_rms});
    return normed.y;
  }
  static torch::autograd::variable_list backward(torch::autograd::AutogradContext* context,
                                                 torch::autograd::variable_list d_y) {
    const auto saved = context->get_saved_variables();
    const at::Tensor &x = saved[0], &weight = saved[1], &inverse_rms = saved[2];
    at::Tensor d_x, d_weight;
    if (context->needs_input_grad(0)) d_x = d_x_of(x, weight, inverse_rms, d_y[0], at::Tensor());
    if (context->needs_input_grad(1)) d_weight = d_weight_of(x, weight, inverse_rms, d_y[0]);
    return {d_x, d_weight, at::Tensor()};
  }
};

/// Hidden from autograd, which would take a bare tensor for one more differentiable input.
struct Known {
  at::Tensor sum;
};

struct AddRmsNorm : torch::autograd::Function<AddRmsNorm> {
  static torch::autograd::variable_list forward(torch::autograd::AutogradContext* context, const at::Tensor& x,
                                                const at::Tensor& added, const at::Tensor& weight, double eps,
                                                const Known& known) {
    const Normed normed = known.sum.defined() ? moetune::forward(known.sum, at::Tensor(), weight, eps)
                                              : moetune::forward(x, added, weight, eps);
    context->set_materialize_grads(false);
    context->save_for_backward({normed.sum, weight, normed.inverse_rms});
    return {normed.sum, normed.y};
  }
  static torch::autograd::variable_list backward(torch::autograd::AutogradContext* context,
                                                 torch::autograd::variable_list d_sum_and_y) {
    const at::Tensor &d_sum = d_sum_and_y[0], &d_y = d_sum_and_y[1];
    if (!d_y.defined()) return {d_sum, d_sum, at::Tensor(), at::Tensor(), at::Tensor()};
    const auto saved = context->get_saved_variables();
    const at::Tensor &sum = saved[0], &weight = saved[1], &inverse_rms = saved[2];
    at::Tensor d_both, d_weight;
    if (context->needs_input_grad(0) || context->needs_input_grad(1)) {
      d_both = d_x_of(sum, weight, inverse_rms, d_y, d_sum);
    }
    if (context->needs_input_grad(2)) d_weight = d_weight_of(sum, weight, inverse_rms, d_y);
    return {d_both, d_both, d_weight, at::Tensor(), at::Tensor()};
  }
};

}  // namespace

at::Tensor rms_norm(const at::Tensor& x_TD, const at::Tensor& weight_D, double eps) {
  return RmsNorm::apply(x_TD, weight_D, eps);
}

NormedSum add_rms_norm(const at::Tensor& x_TD, const at::Tensor& added_TD, const at::Tensor& weight_D, double eps,
                       const at::Tensor& known_sum_TD) {
  MT_CHECK(x_TD.sizes() == added_TD.sizes(), x_TD.sizes(), " and ", added_TD.sizes());
  const auto outputs = AddRmsNorm::apply(x_TD, added_TD, weight_D, eps,
                                         Known{known_sum_TD.defined() ? known_sum_TD.detach() : known_sum_TD});
  return {outputs[0], outputs[1]};
}

}  // namespace moetune
