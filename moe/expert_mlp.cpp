#include "moe/expert_mlp.h"

#include "parallel/base/error.h"

namespace moetune {
namespace {

GateUp apart(const at::Tensor& gate_up_XF) {
  return {gate_up_XF.slice(1, 0, std::nullopt, 2), gate_up_XF.slice(1, 1, std::nullopt, 2)};
}

// A hidden activation h, what its backward pass needs beside gate and up, and d h -> d gate, d up.
struct Hidden {
  at::Tensor h_XF;
  at::Tensor glu_XF;  ///< h without its factor of up: silu(gate), g sigmoid(alpha g)
};

Hidden clamped_swiglu(const ExpertSpec& spec, const GateUp& x) {
  at::Tensor g_XF = x.gate_XF.clamp_max(spec.activation_limit);
  at::Tensor glu_XF = (g_XF * spec.activation_alpha).sigmoid_().mul_(g_XF);
  return {x.up_XF.clamp(-spec.activation_limit, spec.activation_limit).add_(1.0).mul_(glu_XF), glu_XF};
}

// Of forward(): h alone, in as little memory as there can be.
at::Tensor activate(const ExpertSpec& spec, const GateUp& x) {
  if (spec.activation == ExpertSpec::Activation::kSwiglu) return at::silu(x.gate_XF).mul_(x.up_XF);
  return clamped_swiglu(spec, x).h_XF;
}

Hidden activate_for_backward(const ExpertSpec& spec, const GateUp& x) {
  if (spec.activation == ExpertSpec::Activation::kSwiglu) {
    at::Tensor glu_XF = at::silu(x.gate_XF);
    return {glu_XF * x.up_XF, glu_XF};
  }
  return clamped_swiglu(spec, x);
}

// Gradients of gate and up; d_h_XF is overwritten.
GateUp activation_gradient(const ExpertSpec& spec, const GateUp& x, const Hidden& hidden, at::Tensor d_h_XF) {
  if (spec.activation == ExpertSpec::Activation::kSwiglu) {
    at::Tensor d_gate_XF = at::silu_backward(d_h_XF * x.up_XF, x.gate_XF);
    return {d_gate_XF, d_h_XF.mul_(hidden.glu_XF)};
  }
  // d glu / d g = s + alpha g s (1 - s) = s + alpha glu (1 - s), s = sigmoid(alpha g). A clamped number gets nothing.
  const double limit = spec.activation_limit, alpha = spec.activation_alpha;
  at::Tensor s_XF = (x.gate_XF.clamp_max(limit) * alpha).sigmoid_();
  at::Tensor d_gate_XF = (1.0 - s_XF).mul_(hidden.glu_XF).mul_(alpha).add_(s_XF);
  d_gate_XF.mul_(x.up_XF.clamp(-limit, limit).add_(1.0)).mul_(d_h_XF).masked_fill_(x.gate_XF.gt(limit), 0.0);
  return {d_gate_XF, d_h_XF.mul_(hidden.glu_XF).masked_fill_(x.up_XF.abs().gt(limit), 0.0)};
}

}  // namespace

ExpertMlp::ExpertMlp(const ExpertSpec& spec, std::unique_ptr<GroupedLinear> gate, std::unique_ptr<GroupedLinear> up,
                     std::unique_ptr<GroupedLinear> down)
    : spec_(spec), gate_(std::move(gate)), up_(std::move(up)), down_(std::move(down)) {}

ExpertMlp::ExpertMlp(const ExpertSpec& spec, std::unique_ptr<GroupedLinear> gate_up,
                     std::unique_ptr<GroupedLinear> down)
    : spec_(spec), gate_(std::move(gate_up)), down_(std::move(down)) {}

std::vector<GroupedLinear*> ExpertMlp::linears() const {
  if (is_joint()) return {gate_.get(), down_.get()};
  return {gate_.get(), up_.get(), down_.get()};
}

bool ExpertMlp::drops(const StepRandom& random) const {
  for (const GroupedLinear* map : linears()) {
    if (map->adapter() != nullptr && map->adapter()->drops(random)) return true;
  }
  return false;
}

int64_t ExpertMlp::scratch_elements_per_expert() const {
  int64_t elements = 0;
  for (const GroupedLinear* map : linears()) elements += map->scratch_elements_per_expert();
  return elements;
}

at::Tensor ExpertMlp::dense(const GroupedLinear& map, const ExpertChunk& chunk, PassContext& pass) const {
  return map.dense(chunk.first, chunk.count, pass.scratch, pass.dequantised);
}

at::Tensor ExpertMlp::forward(const ExpertChunk& chunk, const ExpertRows& rows, PassContext& pass, GateUp* kept) const {
  at::NoGradGuard no_grad;
  const at::Tensor weight_X1 = rows.weight_X.unsqueeze(1);
  const at::Tensor x_XD = weighs_input() ? at::Tensor(rows.x_XD).mul_(weight_X1) : rows.x_XD;
  GateUp before;
  if (is_joint()) {
    before = apart(gate_->forward(x_XD, dense(*gate_, chunk, pass), chunk, rows.token_X, pass.random));
  } else {
    before.gate_XF = gate_->forward(x_XD, dense(*gate_, chunk, pass), chunk, rows.token_X, pass.random);
    before.up_XF = up_->forward(x_XD, dense(*up_, chunk, pass), chunk, rows.token_X, pass.random);
  }
  at::Tensor h_XF = activate(spec_, before);
  if (!weighs_input()) h_XF.mul_(weight_X1);
  if (kept != nullptr) *kept = std::move(before);
  return down_->forward(h_XF, dense(*down_, chunk, pass), chunk, rows.token_X, pass.random,
                        weighs_input() ? at::Tensor() : weight_X1);
}

RowGradients ExpertMlp::backward(const ExpertChunk& chunk, const ExpertRows& rows, const at::Tensor& d_out_XD,
                                 PassContext& pass, const GateUp* kept) const {
  at::NoGradGuard no_grad;
  const at::Tensor weight_X1 = rows.weight_X.unsqueeze(1), &token_X = rows.token_X;
  const at::Tensor x_XD = weighs_input() ? rows.x_XD * weight_X1 : rows.x_XD;
  const at::Tensor gate_eFD = dense(*gate_, chunk, pass), up_eFD = is_joint() ? at::Tensor() : dense(*up_, chunk, pass),
                   down_eDF = dense(*down_, chunk, pass);
  GateUp before;
  if (kept != nullptr) {
    before = *kept;
  } else if (is_joint()) {
    before = apart(gate_->forward(x_XD, gate_eFD, chunk, token_X, pass.random));
  } else {
    before.gate_XF = gate_->forward(x_XD, gate_eFD, chunk, token_X, pass.random);
    before.up_XF = up_->forward(x_XD, up_eFD, chunk, token_X, pass.random);
  }
  const Hidden hidden = activate_for_backward(spec_, before);
  RowGradients d;
  at::Tensor d_h_XF;
  if (weighs_input()) {
    d_h_XF = down_->backward(d_out_XD, hidden.h_XF, down_eDF, chunk, token_X, pass.random);
  } else {
    d_h_XF = down_->backward(d_out_XD, hidden.h_XF * weight_X1, down_eDF, chunk, token_X, pass.random, weight_X1);
    d.d_weight_X = (d_h_XF * hidden.h_XF).sum(1, false, d_out_XD.scalar_type());
    if (down_->adds_bias()) {
      d.d_weight_X.add_(down_->bias_weight_gradient(d_out_XD, chunk, d_out_XD.scalar_type()));
    }
    d_h_XF.mul_(weight_X1);
  }
  const GateUp d_before = activation_gradient(spec_, before, hidden, d_h_XF);
  if (is_joint()) {
    const at::Tensor d_gate_up_XF = at::stack({d_before.gate_XF, d_before.up_XF}, 2).flatten(1);
    d.d_x_XD = gate_->backward(d_gate_up_XF, x_XD, gate_eFD, chunk, token_X, pass.random);
  } else {
    d.d_x_XD = gate_->backward(d_before.gate_XF, x_XD, gate_eFD, chunk, token_X, pass.random);
    d.d_x_XD.add_(up_->backward(d_before.up_XF, x_XD, up_eFD, chunk, token_X, pass.random));
  }
  if (weighs_input()) {
    d.d_weight_X = (d.d_x_XD * rows.x_XD).sum(1, false, d_out_XD.scalar_type());
    d.d_x_XD.mul_(weight_X1);
  }
  return d;
}

}  // namespace moetune
