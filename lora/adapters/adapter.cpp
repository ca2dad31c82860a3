#include "lora/adapters/adapter.h"

#include <algorithm>
#include <cmath>

#include "lora/adapters/counter_random.h"
#include "parallel/base/error.h"

namespace moetune {

double adapter_scale(double alpha, int64_t rank, bool rslora) {
  const auto wide_rank = static_cast<double>(rank);
  return alpha / (rslora ? std::sqrt(wide_rank) : wide_rank);
}

std::optional<AdapterSpec> AdapterTargets::match(const std::string& leaf, const std::string& group) {
  if (options_.targets.empty()) return std::nullopt;
  if (std::find(seen_.begin(), seen_.end(), leaf) == seen_.end()) seen_.push_back(leaf);
  bool matched = false;
  for (size_t i = 0; i < options_.targets.size(); ++i) {
    const std::string& target = options_.targets[i];
    if (target == leaf || target == group || target == "all_linear") {
      ++matches_[i];
      matched = true;
    }
  }
  if (!matched) return std::nullopt;
  AdapterSpec spec{options_.rank, 0.0, options_.dropout};
  for (const auto& [name, rank] : options_.ranks) {
    if (name == leaf) spec.rank = rank;
  }
  spec.scale = adapter_scale(options_.alpha, spec.rank, options_.rslora);
  return spec;
}

void AdapterTargets::require_all_matched() const {
  std::string missing;
  for (size_t i = 0; i < matches_.size(); ++i) {
    if (matches_[i] == 0) missing += (missing.empty() ? "" : ", ") + options_.targets[i];
  }
  if (missing.empty()) return;
  std::string maps;
  for (const std::string& name : seen_) maps += (maps.empty() ? "" : ", ") + name;
  throw UserError(str("adapter.targets: no linear map of this model matches ", missing, "; it has ", maps));
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
  ParameterInfo b_info = info;
  b_info.name = info.name + ".lora_B.weight";
  b_info.role = Role::kAdapterB;
  const bool stacked = info.num_experts > 0;
  const int64_t held_inputs = cut.inputs(inputs), held_outputs = cut.outputs(outputs);
  if (cut.cuts_inputs()) a_info.hold_part(stacked ? 2 : 1, first_input_, inputs);
  if (cut.cuts_outputs()) b_info.hold_part(stacked ? 1 : 0, cut.first_output(outputs), outputs);
  at::Tensor a;
  if (stacked) {
    a = at::empty({local_experts, spec.rank, held_inputs});
    for (int64_t e = 0; e < local_experts; ++e) {
      a[e].copy_(initial_a(expert_name(a_info.name, info.first_expert + e)).narrow(1, first_input_, held_inputs));
    }
  } else {
    a = initial_a(a_info.name).narrow(1, first_input_, held_inputs);
  }
  a_ = &parameters.add(a_info, a);
  b_ = &parameters.add(
      b_info, stacked ? at::zeros({local_experts, held_outputs, spec.rank}) : at::zeros({held_outputs, spec.rank}));
}

at::Tensor Adapter::drop(const at::Tensor& x, const at::Tensor& global_token, const StepRandom& random) const {
  if (!drops(random)) return x;
  const uint64_t key = stream_key(stream_key(random.seed, "dropout/" + name_), random.step);
  at::Tensor element = global_token.unsqueeze(-1) * inputs_ +
                       at::arange(first_input_, first_input_ + x.size(-1), global_token.options());
  at::Tensor keep = counter_uniform_at(key, element) >= spec_.dropout;
  // A number as factor: as a tensor it would be rounded to x's dtype, and in bf16 the mean would move.
  return x.mul(keep).mul(1.0 / (1.0 - spec_.dropout));
}

}  // namespace moetune
