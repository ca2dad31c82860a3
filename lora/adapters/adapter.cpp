#include "lora/adapters/adapter.h"

#include <algorithm>
#include <cmath>

#include "lora/adapters/counter_random.h"
#include "lora/adapters/dropout_kernels.h"
#include "parallel/base/error.h"
#include "parallel/device/row_kernels.h"

namespace moetune {

double adapter_scale(double alpha, int64_t rank, bool rslora) {
  const auto wide_rank = static_cast<double>(rank);
  return alpha / (rslora ? std::sqrt(wide_rank) : wide_rank);
}

AdapterTargets::AdapterTargets(Options options)
    : options_(std::move(options)),
      matches_(options_.targets.size()),
      layer_matches_(options_.layers.ranges.size() + 1) {}

std::optional<AdapterSpec> AdapterTargets::match(const std::string& leaf, const std::string& group, LayerId layer,
                                                 int64_t stack) {
  if (options_.targets.empty()) return std::nullopt;
  if (std::find(seen_.begin(), seen_.end(), leaf) == seen_.end()) seen_.push_back(leaf);
  if (!layer.is_mtp()) last_layer_ = std::max(last_layer_, layer.number());
  bool matched = false;
  for (size_t i = 0; i < options_.targets.size(); ++i) {
    const std::string& target = options_.targets[i];
    if (target != leaf && target != group && target != "all_linear") continue;
    matched = true;
    if (options_.layers.holds(layer)) ++matches_[i];
  }
  if (!matched) return std::nullopt;
  const std::vector<NumberRange>& ranges = options_.layers.ranges;
  for (size_t i = 0; i < ranges.size(); ++i) layer_matches_[i] += !layer.is_mtp() && ranges[i].holds(layer.number());
  layer_matches_.back() += layer.is_mtp();
  if (!options_.layers.holds(layer)) return std::nullopt;
  AdapterSpec spec{options_.rank, 0.0, options_.dropout};
  for (const auto& [name, rank] : options_.ranks) {
    if (name == leaf) spec.rank = rank;
  }
  spec.scale = adapter_scale(options_.alpha, spec.rank, options_.rslora);
  if (stack == 0) return spec;
  most_experts_ = std::max(most_experts_, stack);
  spec.experts = options_.experts.of_stack();
  return spec;
}

void AdapterTargets::require_all_matched() const {
  std::string missing;
  for (size_t i = 0; i < matches_.size(); ++i) {
    if (matches_[i] == 0) missing += (missing.empty() ? "" : ", ") + options_.targets[i];
  }
  // A layer that does not match anything is the nearer reason where layers are chosen.
  std::string layers;
  for (size_t i = 0; i < options_.layers.ranges.size(); ++i) {
    if (layer_matches_[i] == 0) layers += (layers.empty() ? "" : ", ") + to_string(options_.layers.ranges[i]);
  }
  if (!options_.layers.all && options_.layers.mtp && layer_matches_.back() == 0) {
    layers += layers.empty() ? "mtp" : ", mtp";
  }
  if (!layers.empty() && !seen_.empty()) {
    throw UserError(str("adapter.layers: no linear map that adapter.targets names lies in ", layers,
                        "; the model has layers 0 to ", last_layer_,
                        options_.layers.mtp ? ", and the MTP module takes part where mtp.loss_weight is above 0" : ""));
  }
  if (!missing.empty()) {
    std::string maps;
    for (const std::string& name : seen_) maps += (maps.empty() ? "" : ", ") + name;
    throw UserError(str("adapter.targets: no linear map of this model matches ", missing,
                        options_.layers.all ? "" : " in the layers of adapter.layers", "; it has ", maps));
  }
  require_experts_matched();
}

void AdapterTargets::require_experts_matched() const {
  const ExpertChoice& experts = options_.experts;
  if (options_.targets.empty() || experts.kind == ExpertChoice::Kind::kAll) return;
  if (most_experts_ == 0) {
    throw UserError("adapter.experts: adapter.targets names no map of routed experts; add the target experts");
  }
  std::string missing;
  for (const NumberRange& range : experts.ranges) {
    if (range.last >= most_experts_) missing += (missing.empty() ? "" : ", ") + to_string(range);
  }
  if (experts.top > most_experts_) missing = str("top ", experts.top);
  if (!missing.empty()) {
    throw UserError(str("adapter.experts: ", missing, " is more than there is; a layer of the model has experts 0 to ",
                        most_experts_ - 1));
  }
}

std::string expert_name(const std::string& stack_name, int64_t expert) {
  const size_t star = stack_name.find('*');
  MT_CHECK(star != std::string::npos, stack_name, " is no stack");
  return stack_name.substr(0, star) + std::to_string(expert) + stack_name.substr(star + 1);
}

Adapter::Adapter(const AdapterSpec& spec, const ParameterInfo& info, int64_t local_experts, int64_t outputs,
                 int64_t inputs, uint64_t seed, ParameterSet& parameters, const MatrixCut& cut)
    : spec_(spec), name_(info.name), inputs_(inputs), first_input_(cut.first_input(inputs)) {
  const double bound = 1.0 / std::sqrt(static_cast<double>(inputs));
  auto initial_a = [&](const std::string& name) {
    return counter_uniform(stream_key(seed, name), 0, spec.rank * inputs, at::kCPU)
        .mul_(2 * bound)
        .sub_(bound)
        .view({spec.rank, inputs});
  };
  ParameterInfo a_info = info;
  a_info.name = info.name + ".lora_A.weight";
  a_info.role = Role::kAdapterA;
  if (!info.joint_name.empty()) a_info.joint_name = info.joint_name + ".lora_A.weight";
  ParameterInfo b_info = info;
  b_info.name = info.name + ".lora_B.weight";
  b_info.role = Role::kAdapterB;
  if (!info.joint_name.empty()) b_info.joint_name = info.joint_name + ".lora_B.weight";
  a_info.joint_experts = b_info.joint_experts = info.joint_name.empty() ? 0 : info.num_experts;
  const bool stacked = info.num_experts > 0;
  if (stacked) {
    MT_CHECK(!spec.experts.are_open(), info.name, ": its experts are not chosen yet");
    experts_ = moetune::local_experts(spec.experts.listed, info.first_expert, local_experts);
    for (ParameterInfo* own : {&a_info, &b_info}) own->hold_experts(spec.experts.listed);
  }
  const auto rows = static_cast<int64_t>(experts_.size());
  const int64_t held_inputs = cut.inputs(inputs), held_outputs = cut.outputs(outputs);
  if (cut.cuts_inputs()) a_info.hold_part(stacked ? 2 : 1, first_input_, inputs);
  if (cut.cuts_outputs()) b_info.hold_part(stacked ? 1 : 0, cut.first_output(outputs), outputs);
  at::Tensor a;
  if (stacked) {
    a = at::empty({rows, spec.rank, held_inputs});
    for (int64_t row = 0; row < rows; ++row) {
      a[row].copy_(initial_a(expert_name(a_info.name, a_info.expert(row))).narrow(1, first_input_, held_inputs));
    }
  } else {
    a = initial_a(a_info.name).narrow(1, first_input_, held_inputs);
  }
  a_ = &parameters.add(a_info, a);
  b_ = &parameters.add(b_info,
                       stacked ? at::zeros({rows, held_outputs, spec.rank}) : at::zeros({held_outputs, spec.rank}));
}

at::Tensor Adapter::drop(const at::Tensor& x, const at::Tensor& global_token, const StepRandom& random) const {
  if (!drops(random)) return x;
  const uint64_t key = stream_key(stream_key(random.seed, "dropout/" + name_), random.step);
  const double factor = 1.0 / (1.0 - spec_.dropout);
  // The kernel knows no graph; Linear and the experts call from where there is none.
  if (has_row_kernels(x) && !(at::GradMode::is_enabled() && x.requires_grad())) {
    const at::Tensor x_TI = as_rows(x), token_T = global_token.contiguous();
    MT_CHECK(token_T.numel() == x_TI.size(0), token_T.numel(), " tokens of ", x_TI.size(0), " rows");
    const at::Tensor dropped = at::empty(x.sizes(), x.options());
    launch_rows(x, [&](auto number, cudaStream_t stream) {
      using Number = decltype(number);
      drop_cuda<Number>({.x = numbers_of<const Number>(x_TI),
                         .x_stride = x_TI.stride(0),
                         .token = token_T.const_data_ptr<int64_t>(),
                         .rows = x_TI.size(0),
                         .width = x_TI.size(1),
                         .inputs = inputs_,
                         .first_input = first_input_,
                         .key = key,
                         .dropout = spec_.dropout,
                         .scale = factor,
                         .y = numbers_of<Number>(dropped)},
                        stream);
    });
    return dropped;
  }
  at::Tensor element = global_token.unsqueeze(-1) * inputs_ +
                       at::arange(first_input_, first_input_ + x.size(-1), global_token.options());
  at::Tensor keep = counter_uniform_at(key, element) >= spec_.dropout;
  // A number as factor: as a tensor it would be rounded to x's dtype, and in bf16 the mean would move.
  return x.mul(keep).mul(factor);
}

}  // namespace moetune
