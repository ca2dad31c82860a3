#include "trainer/run/banner.h"

#include <ATen/Parallel.h>

#include <algorithm>
#include <cstdio>

#include "moe/inventory.h"
#include "parallel/base/error.h"
#include "parallel/base/units.h"

namespace moetune {
namespace {

constexpr size_t kNameColumns = 9;

std::string short_count(int64_t count) { return count_text(static_cast<double>(count)); }

std::string number(const char* format, double value) {
  char text[32];
  std::snprintf(text, sizeof text, format, value);
  return text;
}

std::string model_text(const ModelConfig& config) {
  const int64_t moe_layers = config.num_layers - config.num_dense_layers;
  return str(config.model_type, ", ", short_count(count_parameters(config)), " parameters (",
             short_count(count_active_parameters(config)), " active a token), ", config.num_layers, " layers (",
             moe_layers, " with experts)");
}

std::string experts_text(const ModelConfig& config) {
  const std::string groups =
      config.num_groups > 1 ? str(" from the best ", config.top_groups, " of ", config.num_groups, " groups") : "";
  return str(config.experts, " routed, the top ", config.top_k, groups,
             config.shared_experts > 0 ? str("; ", config.shared_experts, " shared") : "");
}

std::string adapter_text(const Recipe& recipe) {
  if (!recipe.adapter) return "none: the weights themselves train";
  const AdapterRecipe& adapter = *recipe.adapter;
  std::string targets;
  for (const std::string& target : adapter.targets) targets += (targets.empty() ? "" : ", ") + target;
  std::string ranks;
  for (const auto& [leaf, rank] : adapter.ranks) ranks += str(", ", leaf, " ", rank);
  return str("LoRA of rank ", adapter.rank, ranks, ", alpha ", number("%g", adapter.alpha),
             adapter.rslora ? " (rsLoRA)" : "",
             adapter.dropout > 0.0 ? str(", dropout ", number("%g", adapter.dropout)) : "", " on ", targets,
             adapter.from ? str(", from ", *adapter.from) : "");
}

std::string trained_text(const MemoryPlan& plan, int64_t parameters) {
  int64_t total = 0;
  std::string groups;
  for (const auto& [group, numbers] : plan.trained_by_group) {
    total += numbers;
    groups += str(groups.empty() ? "" : ", ", group, " ", short_count(numbers));
  }
  return str(short_count(total), " parameters, ",
             number("%.3g", 100.0 * static_cast<double>(total) / static_cast<double>(parameters)),
             " % of the model: ", groups);
}

/// Bytes of the model's tensors as they lie in this process now.
int64_t held_bytes(const Model& model) {
  int64_t bytes = model.slabs->kept_bytes();
  for (const PlainTensor& tensor : model.plain) bytes += static_cast<int64_t>(tensor.held.nbytes());
  for (const Parameter& parameter : model.parameters.all()) bytes += static_cast<int64_t>(parameter.working.nbytes());
  return bytes;
}

}  // namespace

std::string banner_line(const std::string& name, const std::string& value) {
  return name + std::string(kNameColumns - std::min(name.size(), kNameColumns), ' ') + value + "\n";
}

std::string banner_of_model(const Recipe& recipe, const ModelConfig& config, const MeshShape& mesh,
                            const MemoryPlan& plan) {
  const bool with_mtp = recipe.mtp.loss_weight > 0.0;
  return banner_line("model",
                     str(recipe.model.path,
                         recipe.model.weights == WeightOrigin::kRandom ? " (weights drawn from the seed)" : "")) +
         banner_line("", model_text(config)) + banner_line("experts", experts_text(config)) +
         (with_mtp ? banner_line("mtp", str("one module, loss weight ", number("%g", recipe.mtp.loss_weight))) : "") +
         banner_line("base", str(recipe.adapter ? to_string(recipe.model.base) : "trained weights", ", compute ",
                                 to_string(recipe.model.compute))) +
         banner_line("adapter", adapter_text(recipe)) +
         banner_line("trains", trained_text(plan, count_parameters(config, with_mtp))) +
         banner_line("mesh", str(to_string(mesh), ": ", mesh.num_ranks(), mesh.num_ranks() == 1 ? " rank" : " ranks",
                                 ", ", config.experts / mesh.ep, " experts of each layer a rank",
                                 mesh.expert_tp > 1 ? str(", 1/", mesh.expert_tp, " of each") : ""));
}

std::string banner(const Recipe& recipe, const Assembly& run, const MemoryPlan& plan, const DataSummary& data) {
  const int threads = at::get_num_threads();
  std::string text = banner_of_model(recipe, run.config, run.mesh->shape(), plan);
  text += banner_line("device", str(run.device.str(), ", ", threads, threads == 1 ? " thread" : " threads",
                                    " a rank, slices of ", run.slice_tokens, " tokens"));
  text +=
      banner_line("data", str(data.documents, " documents, ", short_count(data.tokens), " tokens, ",
                              short_count(data.targets), " of them trained, in ", data.sequences, " sequences",
                              data.eval_documents > 0 ? str("; ", data.eval_documents, " documents held out") : ""));
  text += banner_line(
      "steps", str(data.steps, " of ", recipe.train.batch, " sequences of up to ", recipe.data.max_tokens, " tokens"));
  text += banner_line("memory",
                      str("of a rank as planned; the model holds ", bytes_text(held_bytes(*run.model)), " of it now"));
  return text + memory_table(plan, /*with_formulas=*/false);
}

}  // namespace moetune
