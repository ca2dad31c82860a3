#include "lora/grouped_maps.h"

#include <algorithm>

#include "parallel/base/error.h"
#include "parallel/device/gpu_support.h"

namespace moetune {
namespace {

/// Whether a map's weights are made dense to where they are wanted; a GPU writes whole 16-byte words.
bool made_dense(const GroupedLinear* map) {
  return map->scratch_elements_per_expert() > 0 &&
         (map->frozen()->device().is_cpu() || map->outputs() * map->inputs() % 8 == 0);
}

/// The stack of `parts` as it lies in memory already, each unit's parts one after the other; undefined where they do
/// not.
at::Tensor neighbours(const std::vector<at::Tensor>& parts) {
  int64_t outputs = 0;
  const at::Tensor& first = parts.front();
  for (const at::Tensor& part : parts) {
    const bool next = part.storage().is_alias_of(first.storage()) && part.scalar_type() == first.scalar_type() &&
                      part.storage_offset() == first.storage_offset() + outputs * first.size(2) &&
                      part.stride(0) == first.stride(0) && part.stride(1) == first.size(2) && part.stride(2) == 1;
    if (!next) return {};
    outputs += part.size(1);
  }
  return first.as_strided({first.size(0), outputs, first.size(2)}, {first.stride(0), first.size(2), 1});
}

}  // namespace

GroupedMaps::GroupedMaps(std::vector<GroupedLinear*> maps) : maps_(std::move(maps)) {
  for (const GroupedLinear* map : maps_) {
    outputs_.push_back(map->outputs());
    num_outputs_ += map->outputs();
  }
}

template <typename Work>
void GroupedMaps::for_each_part(const at::Tensor& all_XO, const Work& work) const {
  int64_t first = 0;
  for (size_t i = 0; i < maps_.size(); ++i) {
    work(i, all_XO.size(1) == outputs_[i] ? all_XO : all_XO.narrow(1, first, outputs_[i]));
    first += outputs_[i];
  }
}

template <typename Work>
void GroupedMaps::for_each_adapter(const Work& work) const {
  int64_t first = 0;
  for (size_t i = 0; i < maps_.size(); ++i) {
    if (maps_[i]->adapter() == nullptr) continue;
    const int64_t columns = grouped_aligned(maps_[i]->adapter()->rank());
    work(i, first, columns);
    first += columns;
  }
}

bool GroupedMaps::needs_input() const {
  return std::any_of(maps_.begin(), maps_.end(), [](const GroupedLinear* map) { return map->needs_input(); });
}

int64_t GroupedMaps::rank() const {
  int64_t rank = 0;
  for_each_adapter([&](size_t, int64_t, int64_t columns) { rank += columns; });
  return rank;
}

bool GroupedMaps::folds() const {
  bool can = rank() > 0 && std::all_of(maps_.begin(), maps_.end(), made_dense),
       suits = num_outputs_ % kGroupedAlignment == 0;
  for_each_adapter([&](size_t i, int64_t, int64_t) {
    can = can && maps_[i]->adapter()->of_all_experts();
    suits = suits && outputs_[i] % kGroupedAlignment == 0;
  });
  if (fold_.has_value() || !can) return can && fold_.value_or(false);
  const FrozenWeight& weight = *maps_.front()->frozen();
  return suits && inputs() % kGroupedAlignment == 0 && weight.compute() == at::kBFloat16 && weight.device().is_cuda() &&
         has_grouped_kernel(compute_capability(std::max<int>(0, weight.device().index())));
}

int64_t GroupedMaps::spare(const StepRandom& random) const {
  bool drops = false;
  for_each_adapter([&](size_t i, int64_t, int64_t) { drops = drops || maps_[i]->adapter()->drops(random); });
  return !drops && folds() ? rank() : 0;
}

int64_t GroupedMaps::scratch_elements_per_expert() const {
  int64_t elements = 0;
  for (const GroupedLinear* map : maps_) elements += map->scratch_elements_per_expert();
  if (folds()) elements += (num_outputs_ + rank()) * (inputs() + rank()) - num_outputs_ * inputs();
  return elements;
}

GroupedMaps::Dense GroupedMaps::dense(const ExpertChunk& chunk, const StepRandom& random, Scratch& scratch,
                                      DequantCounters& counters) const {
  at::NoGradGuard no_grad;
  Dense dense;
  const int64_t O = num_outputs_, I = inputs(), R = spare(random), e = chunk.count;
  if (R == 0 && maps_.size() == 1) {
    dense.all_eOI = maps_[0]->dense(chunk.first, e, scratch, counters);
    return dense;
  }
  const auto is_made = [&](const GroupedLinear* map) { return made_dense(map) && map->makes_dense(chunk.first, e); };
  if (!std::all_of(maps_.begin(), maps_.end(), is_made)) {
    for (const GroupedLinear* map : maps_) {
      dense.apart_eOI.push_back(map->dense(chunk.first, e, scratch, counters));
    }
    dense.all_eOI = neighbours(dense.apart_eOI);
    return dense;
  }
  const at::Tensor stack = scratch.take({e, O + (R > 0 ? R : 0), I + R});
  dense.all_eOI = stack.narrow(1, 0, O).narrow(2, 0, I);
  int64_t first = 0;
  for (size_t i = 0; i < maps_.size(); ++i) {
    maps_[i]->dense_into(chunk.first, dense.all_eOI.narrow(1, first, outputs_[i]), scratch, counters);
    first += outputs_[i];
  }
  if (R == 0) return dense;
  dense.folded_eOI = stack;
  const at::Tensor a_eRI = stack.narrow(1, O, R).narrow(2, 0, I), b_eOR = stack.narrow(1, 0, O).narrow(2, I, R);
  bool filled_up = false;
  for_each_adapter(
      [&](size_t i, int64_t, int64_t columns) { filled_up = filled_up || columns > maps_[i]->adapter()->rank(); });
  if (filled_up) a_eRI.zero_();
  if (filled_up || maps_.size() > 1) b_eOR.zero_();
  int64_t first_output = 0;
  std::vector<int64_t> begins;
  for (const int64_t outputs : outputs_) {
    begins.push_back(first_output);
    first_output += outputs;
  }
  for_each_adapter([&](size_t i, int64_t column, int64_t) {
    const Adapter& adapter = *maps_[i]->adapter();
    a_eRI.narrow(1, column, adapter.rank()).copy_(adapter.a().working.narrow(0, chunk.first, e));
    b_eOR.narrow(1, begins[i], outputs_[i])
        .narrow(2, column, adapter.rank())
        .copy_(adapter.b().working.narrow(0, chunk.first, e));
  });
  return dense;
}

at::Tensor GroupedMaps::with_spare(const at::Tensor& rows, int64_t columns) const {
  const int64_t wide = columns + rank();
  if (rows.size(1) == wide) return rows;
  MT_CHECK(rows.size(1) == columns, "rows of ", rows.size(1), " numbers, maps of ", columns);
  at::Tensor copy = at::empty({rows.size(0), wide}, rows.options());
  copy.narrow(1, 0, columns).copy_(rows);
  return copy;
}

void GroupedMaps::scale_parts(const at::Tensor& low_XR) const {
  for_each_adapter([&](size_t i, int64_t column, int64_t columns) {
    const double scale = maps_[i]->adapter()->scale();
    if (scale != 1.0) low_XR.narrow(1, column, columns).mul_(scale);
  });
}

void GroupedMaps::fill_low(const at::Tensor& wide_XI, const Dense& dense, const ExpertChunk& chunk) const {
  const at::Tensor a_eRI = dense.folded_eOI.narrow(1, num_outputs_, rank()).narrow(2, 0, inputs()),
                   low_XR = wide_XI.narrow(1, inputs(), rank());
  low_XR.copy_(grouped_mm(wide_XI.narrow(1, 0, inputs()), a_eRI.transpose(1, 2), chunk.groups));
  scale_parts(low_XR);
}

at::Tensor GroupedMaps::forward(const at::Tensor& x_XI, const Dense& dense, const ExpertChunk& chunk,
                                const at::Tensor& token_X, const StepRandom& random,
                                const at::Tensor& bias_weight_X1) const {
  at::NoGradGuard no_grad;
  at::Tensor y_XO;
  const bool folded = dense.folded_eOI.defined();
  if (folded) {
    const at::Tensor wide_XI = with_spare(x_XI, inputs());
    fill_low(wide_XI, dense, chunk);
    y_XO = grouped_mm(wide_XI, dense.folded_eOI.narrow(1, 0, num_outputs_).transpose(1, 2), chunk.groups);
  } else if (dense.all_eOI.defined()) {
    y_XO = grouped_mm(x_XI, dense.all_eOI.transpose(1, 2), chunk.groups);
  } else {
    std::vector<at::Tensor> parts;
    for (const at::Tensor& own_eOI : dense.apart_eOI) {
      parts.push_back(grouped_mm(x_XI, own_eOI.transpose(1, 2), chunk.groups));
    }
    y_XO = at::cat(parts, 1);
  }
  for_each_part(y_XO, [&](size_t i, const at::Tensor& own_XO) {
    maps_[i]->add_bias(own_XO, chunk, bias_weight_X1);
    if (!folded) maps_[i]->add_adapter(own_XO, x_XI, chunk, token_X, random);
  });
  return y_XO;
}

GroupedMaps::InputGradient GroupedMaps::input_gradient(const at::Tensor& dy_XO, const Dense& dense,
                                                       const ExpertChunk& chunk, const at::Tensor& token_X,
                                                       const StepRandom& random) const {
  at::NoGradGuard no_grad;
  InputGradient d;
  if (dense.folded_eOI.defined()) {
    const int64_t O = num_outputs_, R = rank();
    const at::Tensor wide_XO = with_spare(dy_XO, O);
    d.d_low_all_XR = wide_XO.narrow(1, O, R);
    d.d_low_all_XR.copy_(
        grouped_mm(wide_XO.narrow(1, 0, O), dense.folded_eOI.narrow(1, 0, O).narrow(2, inputs(), R), chunk.groups));
    scale_parts(d.d_low_all_XR);
    d.dx_XI = grouped_mm(wide_XO, dense.folded_eOI.narrow(2, 0, inputs()), chunk.groups);
    return d;
  }
  if (dense.all_eOI.defined()) d.dx_XI = grouped_mm(dy_XO, dense.all_eOI, chunk.groups);
  for_each_part(dy_XO, [&](size_t i, const at::Tensor& own_XO) {
    if (!dense.all_eOI.defined()) {
      const at::Tensor own_XI = grouped_mm(own_XO, dense.apart_eOI[i], chunk.groups);
      d.dx_XI.defined() ? d.dx_XI.add_(own_XI) : d.dx_XI = own_XI;
    }
    d.d_low_XR.push_back(maps_[i]->add_adapter_input_gradient(d.dx_XI, own_XO, chunk, token_X, random));
  });
  return d;
}

void GroupedMaps::add_gradients(const at::Tensor& dy_XO, const at::Tensor& x_XI, const InputGradient& of_input,
                                const Dense& dense, const ExpertChunk& chunk, const at::Tensor& token_X,
                                const StepRandom& random, const at::Tensor& bias_weight_X1, bool has_low) {
  at::NoGradGuard no_grad;
  if (!dense.folded_eOI.defined()) {
    for_each_part(dy_XO, [&](size_t i, const at::Tensor& own_XO) {
      maps_[i]->add_gradients(own_XO, x_XI, of_input.d_low_XR.at(i), chunk, token_X, random, bias_weight_X1);
    });
    return;
  }
  const at::Tensor wide_XI = with_spare(x_XI, inputs());
  if (!has_low || wide_XI.data_ptr() != x_XI.data_ptr()) fill_low(wide_XI, dense, chunk);
  const auto gradient_of = [&](Parameter& parameter) {
    return parameter.gradient().narrow(0, chunk.first, chunk.count);
  };
  const at::Tensor d_a_eRI = grouped_outer(of_input.d_low_all_XR, wide_XI.narrow(1, 0, inputs()), chunk.groups);
  std::vector<at::Tensor> dy_of_map;
  for_each_part(dy_XO, [&](size_t i, const at::Tensor& own_XO) {
    maps_[i]->add_gradients(own_XO, {}, {}, chunk, token_X, random, bias_weight_X1);  // of a bias
    dy_of_map.push_back(own_XO);
  });
  for_each_adapter([&](size_t i, int64_t column, int64_t columns) {
    const Adapter& adapter = *maps_[i]->adapter();
    const at::Tensor low_XR = wide_XI.narrow(1, inputs() + column, columns);
    gradient_of(adapter.b()).add_(grouped_outer(dy_of_map[i], low_XR, chunk.groups).narrow(2, 0, adapter.rank()));
    gradient_of(adapter.a()).add_(d_a_eRI.narrow(1, column, adapter.rank()));
  });
}

}  // namespace moetune
