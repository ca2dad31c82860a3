#include "lora/grouped_linear.h"

#include <numeric>

namespace moetune {
namespace {

// The expert of each row, numbered among those of the groups; found on the device, where the ends of the groups are.
at::Tensor expert_of_rows(const RowGroups& groups) {
  const at::Tensor row_X = at::arange(groups.num_rows(), groups.ends_e.options());
  return at::searchsorted(groups.ends_e, row_X, /*out_int32=*/false, /*right=*/true);
}

}  // namespace

TrainedExperts TrainedExperts::all(Parameter& rows) {
  TrainedExperts trained{&rows, std::vector<int64_t>(rows.working.size(0))};
  std::iota(trained.experts.begin(), trained.experts.end(), 0);
  return trained;
}

at::Tensor GroupedBias::rows(const ExpertChunk& chunk) const {
  at::Tensor own_eO =
      (values_eO_.defined() ? values_eO_ : trained()->working.detach()).narrow(0, chunk.first, chunk.count);
  if (values_eO_.defined() && trained() != nullptr) {
    own_eO = own_eO.clone();
    lay_over(own_eO, chunk.first, trained_.experts, trained()->working.detach());
  }
  return own_eO.index_select(0, expert_of_rows(chunk.groups));
}

void GroupedBias::add_gradient(const at::Tensor& dy_XO, const ExpertChunk& chunk, const at::Tensor& weight_X1) const {
  if (trained() == nullptr) return;
  const ListedRows rows(trained_.experts, chunk);
  if (rows.none()) return;
  at::Tensor gradient_eO = rows.of_stack(trained()->gradient());
  const at::Tensor wide_XO = rows.of(dy_XO).to(gradient_eO.scalar_type());
  gradient_eO.index_add_(0, expert_of_rows(rows.groups()),
                         weight_X1.defined() ? wide_XO * rows.of(weight_X1) : wide_XO);
}

GroupedLinear::GroupedLinear(std::unique_ptr<FrozenWeight> frozen, std::unique_ptr<Adapter> adapter, GroupedBias bias)
    : frozen_(std::move(frozen)), adapter_(std::move(adapter)), bias_(std::move(bias)) {}

GroupedLinear::GroupedLinear(Parameter& trained, GroupedBias bias)
    : trained_(TrainedExperts::all(trained)), bias_(std::move(bias)) {}

int64_t GroupedLinear::scratch_elements_per_expert() const {
  if (!frozen_) return 0;
  const int64_t elements = frozen_->scratch_elements() / frozen_->shape().units;
  return elements == 0 && trained() != nullptr ? outputs() * inputs() : elements;
}

bool GroupedLinear::makes_dense(int64_t first, int64_t count) const {
  if (!frozen_) return false;
  return frozen_->scratch_elements() > 0 || ListedRun(trained_.experts, first, count).count > 0;
}

at::Tensor GroupedLinear::dense(int64_t first, int64_t count, Scratch& scratch, DequantCounters& counters) const {
  if (!frozen_) return trained()->working.detach().narrow(0, first, count);
  if (!makes_dense(first, count)) return frozen_->dense_units(first, count, scratch, counters);
  at::Tensor out_eOI = scratch.take({count, outputs(), inputs()});
  dense_into(first, out_eOI, scratch, counters);
  return out_eOI;
}

void GroupedLinear::dense_into(int64_t first, at::Tensor out_eOI, Scratch& scratch, DequantCounters& counters) const {
  at::NoGradGuard no_grad;
  frozen_->dense_units_into(first, out_eOI.size(0), out_eOI, scratch, counters);
  if (trained() != nullptr) lay_over(out_eOI, first, trained_.experts, trained()->working.detach());
}

at::Tensor GroupedLinear::forward(const at::Tensor& x_XI, const at::Tensor& dense_eOI, const ExpertChunk& chunk,
                                  const at::Tensor& token_X, const StepRandom& random,
                                  const at::Tensor& bias_weight_X1) const {
  at::NoGradGuard no_grad;
  at::Tensor y_XO = grouped_mm(x_XI, dense_eOI.transpose(1, 2), chunk.groups);
  add_bias(y_XO, chunk, bias_weight_X1);
  add_adapter(y_XO, x_XI, chunk, token_X, random);
  return y_XO;
}

void GroupedLinear::add_bias(at::Tensor y_XO, const ExpertChunk& chunk, const at::Tensor& bias_weight_X1) const {
  if (!adds_bias()) return;
  at::Tensor bias_XO = bias_.rows(chunk);
  y_XO.add_(bias_weight_X1.defined() ? bias_XO.mul_(bias_weight_X1) : bias_XO);
}

void GroupedLinear::add_adapter(at::Tensor y_XO, const at::Tensor& x_XI, const ExpertChunk& chunk,
                                const at::Tensor& token_X, const StepRandom& random) const {
  if (!adapter_) return;
  const ListedRows rows(adapter_->experts(), chunk);
  if (rows.none()) return;
  at::Tensor a_eRI = rows.of_stack(adapter_->a().working), b_eOR = rows.of_stack(adapter_->b().working);
  at::Tensor low_XR =
      grouped_mm(adapter_->drop(rows.of(x_XI), rows.of(token_X), random), a_eRI.transpose(1, 2), rows.groups());
  rows.add_to(y_XO, grouped_mm(low_XR, b_eOR.transpose(1, 2), rows.groups()), adapter_->scale());
}

at::Tensor GroupedLinear::backward(const at::Tensor& dy_XO, const at::Tensor& x_XI, const at::Tensor& dense_eOI,
                                   const ExpertChunk& chunk, const at::Tensor& token_X, const StepRandom& random,
                                   const at::Tensor& bias_weight_X1) {
  at::NoGradGuard no_grad;
  at::Tensor dx_XI = grouped_mm(dy_XO, dense_eOI, chunk.groups);
  const at::Tensor d_low_XR = add_adapter_input_gradient(dx_XI, dy_XO, chunk, token_X, random);
  add_gradients(dy_XO, x_XI, d_low_XR, chunk, token_X, random, bias_weight_X1);
  return dx_XI;
}

at::Tensor GroupedLinear::add_adapter_input_gradient(at::Tensor dx_XI, const at::Tensor& dy_XO,
                                                     const ExpertChunk& chunk, const at::Tensor& token_X,
                                                     const StepRandom& random) const {
  if (!adapter_) return {};
  const ListedRows rows(adapter_->experts(), chunk);
  if (rows.none()) return {};
  at::Tensor a_eRI = rows.of_stack(adapter_->a().working), b_eOR = rows.of_stack(adapter_->b().working);
  at::Tensor d_low_XR = grouped_mm(rows.of(dy_XO), b_eOR, rows.groups()).mul_(adapter_->scale());
  rows.add_to(dx_XI, adapter_->drop(grouped_mm(d_low_XR, a_eRI, rows.groups()), rows.of(token_X), random), 1.0);
  return d_low_XR;
}

void GroupedLinear::add_gradients(const at::Tensor& dy_XO, const at::Tensor& x_XI, const at::Tensor& d_low_XR,
                                  const ExpertChunk& chunk, const at::Tensor& token_X, const StepRandom& random,
                                  const at::Tensor& bias_weight_X1) {
  if (adds_bias()) bias_.add_gradient(dy_XO, chunk, bias_weight_X1);
  if (trained() != nullptr) {
    const ListedRows rows(trained_.experts, chunk);
    if (!rows.none()) {
      rows.of_stack(trained()->gradient()).add_(grouped_outer(rows.of(dy_XO), rows.of(x_XI), rows.groups()));
    }
  }
  if (!d_low_XR.defined()) return;
  const ListedRows rows(adapter_->experts(), chunk);
  at::Tensor a_eRI = rows.of_stack(adapter_->a().working);
  at::Tensor dropped_XI = adapter_->drop(rows.of(x_XI), rows.of(token_X), random);
  at::Tensor low_XR = grouped_mm(dropped_XI, a_eRI.transpose(1, 2), rows.groups());
  rows.of_stack(adapter_->b().gradient()).add_(grouped_outer(rows.of(dy_XO), low_XR, rows.groups()), adapter_->scale());
  rows.of_stack(adapter_->a().gradient()).add_(grouped_outer(d_low_XR, dropped_XI, rows.groups()));
}

at::Tensor GroupedLinear::bias_weight_gradient(const at::Tensor& dy_XO, const ExpertChunk& chunk,
                                               at::ScalarType dtype) const {
  at::NoGradGuard no_grad;
  return bias_.rows(chunk).mul_(dy_XO).sum(1, false, dtype);
}

}  // namespace moetune
