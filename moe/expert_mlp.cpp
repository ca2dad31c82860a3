#include "moe/expert_mlp.h"

#include "parallel/base/error.h"

namespace moetune {
namespace {

std::vector<std::unique_ptr<GroupedLinear>> list(std::unique_ptr<GroupedLinear> a, std::unique_ptr<GroupedLinear> b,
                                                 std::unique_ptr<GroupedLinear> c = nullptr) {
  std::vector<std::unique_ptr<GroupedLinear>> maps;
  for (auto* map : {&a, &b, &c}) {
    if (*map != nullptr) maps.push_back(std::move(*map));
  }
  return maps;
}

std::vector<GroupedLinear*> pointers(const std::vector<std::unique_ptr<GroupedLinear>>& maps) {
  std::vector<GroupedLinear*> all;
  for (const auto& map : maps) all.push_back(map.get());
  return all;
}

std::vector<GroupedLinear*> all_but_last(const std::vector<std::unique_ptr<GroupedLinear>>& maps) {
  std::vector<GroupedLinear*> first = pointers(maps);
  first.pop_back();
  return first;
}

}  // namespace

ExpertMlp::ExpertMlp(const ExpertSpec& spec, std::vector<std::unique_ptr<GroupedLinear>> maps)
    : spec_(spec),
      form_{spec.activation, spec.activation_limit, spec.activation_alpha, /*alternating=*/maps.size() == 2},
      maps_(std::move(maps)),
      gate_up_(all_but_last(maps_)),
      down_({maps_.back().get()}) {}

ExpertMlp::ExpertMlp(const ExpertSpec& spec, std::unique_ptr<GroupedLinear> gate, std::unique_ptr<GroupedLinear> up,
                     std::unique_ptr<GroupedLinear> down)
    : ExpertMlp(spec, list(std::move(gate), std::move(up), std::move(down))) {}

ExpertMlp::ExpertMlp(const ExpertSpec& spec, std::unique_ptr<GroupedLinear> gate_up,
                     std::unique_ptr<GroupedLinear> down)
    : ExpertMlp(spec, list(std::move(gate_up), std::move(down))) {}

std::vector<GroupedLinear*> ExpertMlp::linears() const { return pointers(maps_); }

bool ExpertMlp::drops(const StepRandom& random) const {
  for (const auto& map : maps_) {
    if (map->adapter() != nullptr && map->adapter()->drops(random)) return true;
  }
  return false;
}

int64_t ExpertMlp::scratch_elements_per_expert() const {
  return gate_up_.scratch_elements_per_expert() + down_.scratch_elements_per_expert();
}

at::Tensor ExpertMlp::forward(const ExpertChunk& chunk, const ExpertRows& rows, PassContext& pass,
                              at::Tensor* kept_X2F) const {
  at::NoGradGuard no_grad;
  const at::Tensor weight_X1 = rows.weight_X.unsqueeze(1);
  if (weighs_input()) own_columns(rows.x_XD).mul_(weight_X1);
  at::Tensor gate_up_X2F = gate_up_.forward(
      rows.x_XD, gate_up_.dense(chunk, pass.random, pass.scratch, pass.dequantised), chunk, rows.token_X, pass.random);
  const at::Tensor h_XF = gated_activation(form_, gate_up_X2F, weighs_input() ? at::Tensor() : rows.weight_X,
                                           down_.inputs() + down_.spare(pass.random));
  if (kept_X2F != nullptr) *kept_X2F = gate_up_X2F;
  gate_up_X2F.reset();
  return down_.forward(h_XF, down_.dense(chunk, pass.random, pass.scratch, pass.dequantised), chunk, rows.token_X,
                       pass.random, weighs_input() ? at::Tensor() : weight_X1);
}

RowGradients ExpertMlp::backward(const ExpertChunk& chunk, const ExpertRows& rows, const at::Tensor& d_out_XD,
                                 PassContext& pass, const at::Tensor* kept_X2F) {
  at::NoGradGuard no_grad;
  const at::Tensor weight_X1 = rows.weight_X.unsqueeze(1), &token_X = rows.token_X;
  at::Tensor x_XD = rows.x_XD;
  if (weighs_input()) {
    x_XD = at::empty_like(rows.x_XD);
    own_columns(x_XD).copy_(own_columns(rows.x_XD)).mul_(weight_X1);
  }
  const GroupedMaps::Dense gate_up_dense = gate_up_.dense(chunk, pass.random, pass.scratch, pass.dequantised),
                           down_dense = down_.dense(chunk, pass.random, pass.scratch, pass.dequantised);
  const at::Tensor of_weight_X = weighs_input() ? at::Tensor() : rows.weight_X,
                   bias_weight_X1 = weighs_input() ? at::Tensor() : weight_X1;
  RowGradients d;
  at::Tensor d_gate_up_X2F;
  {
    const at::Tensor gate_up_X2F =
        kept_X2F != nullptr ? *kept_X2F : gate_up_.forward(x_XD, gate_up_dense, chunk, token_X, pass.random);
    const auto of_h = down_.input_gradient(d_out_XD, down_dense, chunk, token_X, pass.random);
    const ActivationGradients of_activation =
        gated_activation_backward(form_, gate_up_X2F, of_weight_X, of_h.dx_XI,
                                  {.keep_gate_up = kept_X2F != nullptr,
                                   .hidden = down_.needs_input(),
                                   .d_gate_up_columns = gate_up_.outputs() + gate_up_.spare(pass.random),
                                   .hidden_columns = down_.inputs() + down_.spare(pass.random)});
    down_.add_gradients(d_out_XD, of_activation.hidden_XF, of_h, down_dense, chunk, token_X, pass.random,
                        bias_weight_X1);
    d_gate_up_X2F = of_activation.d_gate_up_X2F;
    d.d_weight_X = of_activation.d_weight_X;
  }
  if (!weighs_input() && down().adds_bias()) {
    d.d_weight_X.add_(
        down().bias_weight_gradient(d_out_XD.narrow(1, 0, down_.outputs()), chunk, d_out_XD.scalar_type()));
  }
  const auto of_x = gate_up_.input_gradient(d_gate_up_X2F, gate_up_dense, chunk, token_X, pass.random);
  gate_up_.add_gradients(d_gate_up_X2F, x_XD, of_x, gate_up_dense, chunk, token_X, pass.random, {},
                         /*has_low=*/kept_X2F == nullptr);
  d.d_x_XD = of_x.dx_XI;
  if (weighs_input()) {
    d.d_weight_X = (d.d_x_XD * own_columns(rows.x_XD)).sum(1, false, d_out_XD.scalar_type());
    d.d_x_XD.mul_(weight_X1);
  }
  return d;
}

}  // namespace moetune
