#include "moe/gated_activation.h"

#include "moe/gated_activation_kernels.h"
#include "parallel/base/error.h"
#include "parallel/device/row_kernels.h"

namespace moetune {
namespace {

using Activation = ExpertSpec::Activation;

struct GateUp {
  at::Tensor gate_XF, up_XF;
};

GateUp parts_of(const ActivationForm& form, const at::Tensor& gate_up_X2F) {
  if (form.alternating) {
    return {gate_up_X2F.slice(1, 0, std::nullopt, 2), gate_up_X2F.slice(1, 1, std::nullopt, 2)};
  }
  const int64_t F = gate_up_X2F.size(1) / 2;
  return {gate_up_X2F.narrow(1, 0, F), gate_up_X2F.narrow(1, F, F)};
}

/// The activation a, and a without its factor of up: silu(g), g sigmoid(alpha g).
struct Activated {
  at::Tensor a_XF, glu_XF;
};

Activated activate(const ActivationForm& form, const GateUp& x) {
  if (form.activation == Activation::kSwiglu) {
    at::Tensor glu_XF = at::silu(x.gate_XF);
    return {glu_XF * x.up_XF, glu_XF};
  }
  at::Tensor g_XF = x.gate_XF.clamp_max(form.limit);
  at::Tensor glu_XF = (g_XF * form.alpha).sigmoid_().mul_(g_XF);
  return {x.up_XF.clamp(-form.limit, form.limit).add_(1.0).mul_(glu_XF), glu_XF};
}

/// d_a_XF is overwritten.
GateUp activation_gradient(const ActivationForm& form, const GateUp& x, const at::Tensor& glu_XF, at::Tensor d_a_XF) {
  if (form.activation == Activation::kSwiglu) {
    at::Tensor d_gate_XF = at::silu_backward(d_a_XF * x.up_XF, x.gate_XF);
    return {d_gate_XF, d_a_XF.mul_(glu_XF)};
  }
  // d glu / d g = s + alpha g s (1 - s) = s + alpha glu (1 - s), s = sigmoid(alpha g).
  const double limit = form.limit, alpha = form.alpha;
  at::Tensor s_XF = (x.gate_XF.clamp_max(limit) * alpha).sigmoid_();
  at::Tensor d_gate_XF = (1.0 - s_XF).mul_(glu_XF).mul_(alpha).add_(s_XF);
  d_gate_XF.mul_(x.up_XF.clamp(-limit, limit).add_(1.0)).mul_(d_a_XF).masked_fill_(x.gate_XF.gt(limit), 0.0);
  return {d_gate_XF, d_a_XF.mul_(glu_XF).masked_fill_(x.up_XF.abs().gt(limit), 0.0)};
}

/// Rows of `columns` numbers, or of more.
at::Tensor rows_like(const at::Tensor& example, int64_t columns, int64_t all) {
  MT_CHECK(all == 0 || all >= columns, columns, " columns of ", all);
  return at::empty({example.size(0), std::max(all, columns)}, example.options());
}

/// The same with `values` in their first columns.
at::Tensor widened(const at::Tensor& values, int64_t all) {
  if (all <= values.size(1)) return values;
  at::Tensor wide = rows_like(values, values.size(1), all);
  wide.narrow(1, 0, values.size(1)).copy_(values);
  return wide;
}

GatedForm kernel_form(const ActivationForm& form) {
  return {form.activation == Activation::kClampedSwiglu, form.alternating, form.limit, form.alpha};
}

int64_t row_stride(const at::Tensor& rows) {
  if (!rows.defined()) return 0;
  MT_CHECK(rows.stride(1) == 1 || rows.size(1) < 2, "numbers of a row lie ", rows.stride(1), " apart");
  return rows.stride(0);
}

at::Tensor weights_as(const at::Tensor& weight_X, const at::Tensor& like) {
  return weight_X.defined() ? weight_X.to(like.scalar_type()).contiguous() : weight_X;
}

}  // namespace

at::Tensor gated_activation(const ActivationForm& form, const at::Tensor& gate_up_X2F, const at::Tensor& weight_X,
                            int64_t columns) {
  const int64_t F = gate_up_X2F.size(1) / 2;
  if (!gate_up_X2F.is_cuda()) {
    at::Tensor h_XF = activate(form, parts_of(form, gate_up_X2F)).a_XF;
    if (weight_X.defined()) h_XF.mul_(weight_X.unsqueeze(1));
    return widened(h_XF, columns);
  }
  at::Tensor h_XF = rows_like(gate_up_X2F, F, columns);
  const at::Tensor weight = weights_as(weight_X, h_XF);
  const GatedRows rows{gate_up_X2F.size(0), F, row_stride(gate_up_X2F), row_stride(h_XF)};
  launch_rows(h_XF, [&](auto number, cudaStream_t stream) {
    using Number = decltype(number);
    gated_activation_cuda(kernel_form(form), rows, numbers_of<const Number>(gate_up_X2F),
                          numbers_of<const Number>(weight), numbers_of<Number>(h_XF), stream);
  });
  return h_XF;
}

ActivationGradients gated_activation_backward(const ActivationForm& form, const at::Tensor& gate_up_X2F,
                                              const at::Tensor& weight_X, const at::Tensor& d_h_XF,
                                              const ActivationBackward& options) {
  const int64_t F = gate_up_X2F.size(1) / 2;
  MT_CHECK(
      d_h_XF.size(0) == gate_up_X2F.size(0) && d_h_XF.size(1) == F && d_h_XF.scalar_type() == gate_up_X2F.scalar_type(),
      "gate and up are ", gate_up_X2F.toString(), " ", gate_up_X2F.sizes(), ", the gradient of h is ",
      d_h_XF.toString(), " ", d_h_XF.sizes());
  ActivationGradients d;
  const bool elsewhere = options.keep_gate_up || options.d_gate_up_columns > 2 * F;
  d.d_gate_up_X2F = elsewhere ? rows_like(gate_up_X2F, 2 * F, options.d_gate_up_columns) : gate_up_X2F;
  if (!gate_up_X2F.is_cuda()) {
    const GateUp x = parts_of(form, gate_up_X2F);
    const Activated made = activate(form, x);
    at::Tensor d_a_XF = d_h_XF;
    if (weight_X.defined()) {
      d.d_weight_X = (d_h_XF * made.a_XF).sum(1, false, d_h_XF.scalar_type());
      d_a_XF.mul_(weight_X.unsqueeze(1));
    }
    if (options.hidden) {
      at::Tensor h_XF = weight_X.defined() ? made.a_XF * weight_X.unsqueeze(1) : made.a_XF;
      d.hidden_XF = widened(h_XF, options.hidden_columns);
    }
    const GateUp d_parts = activation_gradient(form, x, made.glu_XF, d_a_XF),
                 to = parts_of(form, d.d_gate_up_X2F.narrow(1, 0, 2 * F));
    to.gate_XF.copy_(d_parts.gate_XF);
    to.up_XF.copy_(d_parts.up_XF);
    return d;
  }
  if (weight_X.defined()) d.d_weight_X = at::empty({d_h_XF.size(0)}, d_h_XF.options());
  if (options.hidden) {
    d.hidden_XF = options.hidden_columns > F ? rows_like(d_h_XF, F, options.hidden_columns) : d_h_XF;
  }
  const at::Tensor weight = weights_as(weight_X, d_h_XF);
  const GatedRows rows{d_h_XF.size(0),          F,
                       row_stride(gate_up_X2F), row_stride(d.hidden_XF),
                       row_stride(d_h_XF),      row_stride(d.d_gate_up_X2F)};
  launch_rows(d_h_XF, [&](auto number, cudaStream_t stream) {
    using Number = decltype(number);
    const GatedGradients<Number> out{numbers_of<Number>(d.d_gate_up_X2F), numbers_of<Number>(d.d_weight_X),
                                     numbers_of<Number>(d.hidden_XF)};
    gated_activation_backward_cuda(kernel_form(form), rows, numbers_of<const Number>(gate_up_X2F),
                                   numbers_of<const Number>(weight), numbers_of<const Number>(d_h_XF), out, stream);
  });
  return d;
}

}  // namespace moetune
