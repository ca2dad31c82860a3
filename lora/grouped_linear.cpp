#include "lora/grouped_linear.h"

#include <algorithm>

#include "parallel/device/upload.h"

namespace moetune {
namespace {

// The expert of each row, numbered within the chunk; found on the device, where the ends of the groups are.
at::Tensor expert_of_rows(const ExpertChunk& chunk) {
  const at::Tensor row_X = at::arange(chunk.groups.num_rows(), chunk.groups.ends_e.options());
  return at::searchsorted(chunk.groups.ends_e, row_X, /*out_int32=*/false, /*right=*/true);
}

}  // namespace

at::Tensor GroupedBias::rows(const ExpertChunk& chunk) const {
  const at::Tensor& all_eO = trained_ != nullptr ? trained_->working : values_eO_;
  return all_eO.detach().narrow(0, chunk.first, chunk.count).index_select(0, expert_of_rows(chunk));
}

void GroupedBias::add_gradient(const at::Tensor& dy_XO, const ExpertChunk& chunk, const at::Tensor& weight_X1) const {
  if (trained_ == nullptr) return;
  at::Tensor gradient_eO = trained_->gradient().narrow(0, chunk.first, chunk.count);
  const at::Tensor wide_XO = dy_XO.to(gradient_eO.scalar_type());
  gradient_eO.index_add_(0, expert_of_rows(chunk), weight_X1.defined() ? wide_XO * weight_X1 : wide_XO);
}

GroupedLinear::GroupedLinear(std::unique_ptr<FrozenWeight> frozen, std::unique_ptr<Adapter> adapter, GroupedBias bias)
    : frozen_(std::move(frozen)), adapter_(std::move(adapter)), bias_(std::move(bias)) {}

GroupedLinear::GroupedLinear(Parameter& trained, GroupedBias bias) : trained_(&trained), bias_(std::move(bias)) {}

int64_t GroupedLinear::scratch_elements_per_expert() const {
  return frozen_ ? frozen_->scratch_elements() / frozen_->shape().units : 0;
}

at::Tensor GroupedLinear::dense(int64_t first, int64_t count, Scratch& scratch, DequantCounters& counters) const {
  if (trained_ != nullptr) return trained_->working.detach().narrow(0, first, count);
  return frozen_->dense_units(first, count, scratch, counters);
}

// Rows lie by expert, so those of an adapted expert are a range: its begin here less its begin among the adapted ones,
// repeated, takes numbers of the latter to the former. Two short lists go to the device, however many rows there are.
GroupedLinear::AdaptedRows GroupedLinear::adapted_rows(const ExpertChunk& chunk) const {
  const std::vector<int64_t>& experts = adapter_->experts();
  const auto begin = std::lower_bound(experts.begin(), experts.end(), chunk.first),
             end = std::lower_bound(begin, experts.end(), chunk.first + chunk.count);
  AdaptedRows rows;
  rows.first = begin - experts.begin();
  rows.count = end - begin;
  if (rows.count == chunk.count) {
    rows.groups = chunk.groups;
    return rows;
  }
  if (rows.count == 0) return rows;
  std::vector<int64_t> counts, offsets;
  int64_t num_rows = 0;
  for (auto expert = begin; expert != end; ++expert) {
    counts.push_back(chunk.groups.count(*expert - chunk.first));
    offsets.push_back(chunk.groups.begin(*expert - chunk.first) - num_rows);
    num_rows += counts.back();
  }
  const at::Device device = chunk.groups.ends_e.device();
  rows.groups = RowGroups::from_counts(counts, device);
  rows.groups.one_kernel = chunk.groups.one_kernel;
  const at::Tensor lists_2e =
      uploaded(at::stack({at::tensor(offsets, at::kLong), at::tensor(counts, at::kLong)}), device);
  rows.row_X = at::repeat_interleave(lists_2e[0], lists_2e[1], 0, num_rows) +
               at::arange(num_rows, at::TensorOptions(at::kLong).device(device));
  return rows;
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
  const AdaptedRows rows = adapted_rows(chunk);
  if (rows.count == 0) return;
  at::Tensor a_eRI = rows.of_stack(adapter_->a().working), b_eOR = rows.of_stack(adapter_->b().working);
  at::Tensor low_XR =
      grouped_mm(adapter_->drop(rows.of(x_XI), rows.of(token_X), random), a_eRI.transpose(1, 2), rows.groups);
  rows.add_to(y_XO, grouped_mm(low_XR, b_eOR.transpose(1, 2), rows.groups), adapter_->scale());
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
  const AdaptedRows rows = adapted_rows(chunk);
  if (rows.count == 0) return {};
  at::Tensor a_eRI = rows.of_stack(adapter_->a().working), b_eOR = rows.of_stack(adapter_->b().working);
  at::Tensor d_low_XR = grouped_mm(rows.of(dy_XO), b_eOR, rows.groups).mul_(adapter_->scale());
  rows.add_to(dx_XI, adapter_->drop(grouped_mm(d_low_XR, a_eRI, rows.groups), rows.of(token_X), random), 1.0);
  return d_low_XR;
}

void GroupedLinear::add_gradients(const at::Tensor& dy_XO, const at::Tensor& x_XI, const at::Tensor& d_low_XR,
                                  const ExpertChunk& chunk, const at::Tensor& token_X, const StepRandom& random,
                                  const at::Tensor& bias_weight_X1) {
  if (adds_bias()) bias_.add_gradient(dy_XO, chunk, bias_weight_X1);
  if (trained_ != nullptr) {
    trained_->gradient().narrow(0, chunk.first, chunk.count).add_(grouped_outer(dy_XO, x_XI, chunk.groups));
  }
  if (!d_low_XR.defined()) return;
  const AdaptedRows rows = adapted_rows(chunk);
  at::Tensor a_eRI = rows.of_stack(adapter_->a().working);
  at::Tensor dropped_XI = adapter_->drop(rows.of(x_XI), rows.of(token_X), random);
  at::Tensor low_XR = grouped_mm(dropped_XI, a_eRI.transpose(1, 2), rows.groups);
  rows.of_stack(adapter_->b().gradient()).add_(grouped_outer(rows.of(dy_XO), low_XR, rows.groups), adapter_->scale());
  rows.of_stack(adapter_->a().gradient()).add_(grouped_outer(d_low_XR, dropped_XI, rows.groups));
}

at::Tensor GroupedLinear::bias_weight_gradient(const at::Tensor& dy_XO, const ExpertChunk& chunk,
                                               at::ScalarType dtype) const {
  at::NoGradGuard no_grad;
  return bias_.rows(chunk).mul_(dy_XO).sum(1, false, dtype);
}

}  // namespace moetune
