#include "trainer/plan/model_banner.h"

#include <algorithm>
#include <cstdio>

#include "moe/inventory.h"
#include "parallel/base/error.h"
#include "parallel/base/units.h"
#include "trainer/plan/step_work.h"
#include "trainer/recipe/recipe_meaning.h"

namespace moetune {
namespace {

constexpr size_t kNameColumns = 9;

std::string number(const char* format, double value) {
  char text[32];
  std::snprintf(text, sizeof text, format, value);
  return text;
}

std::string model_text(const Blueprint& blueprint) {
  const int64_t moe_layers = blueprint.num_layers() - blueprint.num_dense_layers();
  return str(blueprint.model_type, ", ", count_text(count_parameters(blueprint)), " parameters (",
             count_text(count_active_parameters(blueprint)), " active a token), ", blueprint.num_layers(), " layers (",
             moe_layers, " with experts)");
}

std::string experts_text(const Blueprint& blueprint) {
  const RouterSpec& router = blueprint.router;
  const ExpertSpec& experts = blueprint.experts;
  const std::string groups =
      router.num_groups > 1 ? str(" from the best ", router.top_groups, " of ", router.num_groups, " groups") : "";
  const std::string shared = experts.shared_width > 0 ? "; " + shared_text(experts) : "";
  return str(router.experts, " routed, the top ", router.top_k, groups, shared);
}

std::string ranges_text(const std::vector<NumberRange>& ranges) {
  std::string text;
  for (const NumberRange& range : ranges) text += (text.empty() ? "" : ", ") + to_string(range);
  return text;
}

std::string layers_text(const LayerChoice& layers) {
  const std::string ranges = ranges_text(layers.ranges);
  return layers.mtp ? str(ranges, ranges.empty() ? "" : ", ", "mtp") : ranges;
}

std::string experts_text(const ExpertChoice& experts) {
  switch (experts.kind) {
    case ExpertChoice::Kind::kAll: return "";
    case ExpertChoice::Kind::kListed: return str(", of the experts ", ranges_text(experts.ranges));
    case ExpertChoice::Kind::kTop: return str(", of each layer's experts the ", experts.top, " with the greatest load");
  }
  return "";
}

std::string trained_parts_text(const Recipe& recipe) {
  const TrainedParts parts = trained_parts(recipe);
  if (parts == TrainedParts::all()) return "the weights themselves train";
  return str("the weights themselves of ", to_string(parts), " train");
}

std::string adapter_text(const Recipe& recipe) {
  if (!recipe.adapter) return "none: " + trained_parts_text(recipe);
  const AdapterRecipe& adapter = *recipe.adapter;
  std::string targets;
  for (const std::string& target : adapter.targets) targets += (targets.empty() ? "" : ", ") + target;
  std::string ranks;
  for (const auto& [leaf, rank] : adapter.ranks) ranks += str(", ", leaf, " ", rank);
  return str("LoRA of rank ", adapter.rank, ranks, ", alpha ", number("%g", adapter.alpha),
             adapter.rslora ? " (rsLoRA)" : "",
             adapter.dropout > 0.0 ? str(", dropout ", number("%g", adapter.dropout)) : "", " on ", targets,
             narrowing_text(adapter), recipe.router.train == RouterTraining::kLora ? ", and on the routers" : "",
             trained_parts(recipe).none() ? "" : "; " + trained_parts_text(recipe),
             adapter.from ? str(", from ", *adapter.from) : "");
}

std::string trained_text(const MemoryPlan& plan, int64_t parameters) {
  int64_t total = 0;
  std::string groups;
  for (const auto& [group, numbers] : plan.trained_by_group) {
    total += numbers;
    groups += str(groups.empty() ? "" : ", ", group, " ", count_text(numbers));
  }
  return str(count_text(total), " parameters, ",
             number("%.3g", 100.0 * static_cast<double>(total) / static_cast<double>(parameters)),
             " % of the model: ", groups);
}

}  // namespace

std::string shared_text(const ExpertSpec& experts) {
  if (experts.shared_width % experts.width == 0) return str(experts.shared_width / experts.width, " shared");
  return str("a shared one of ", experts.shared_width, " features");
}

std::string narrowing_text(const AdapterRecipe& adapter) {
  return str(adapter.layers.all ? "" : str(" of layers ", layers_text(adapter.layers)), experts_text(adapter.experts));
}

std::string banner_line(const std::string& name, const std::string& value) {
  return name + std::string(kNameColumns - std::min(name.size(), kNameColumns), ' ') + value + "\n";
}

std::string pipeline_lines(const PipelinePlan& pipeline) {
  if (pipeline.stages.size() == 1) return "";
  std::string lines;
  for (size_t stage = 0; stage < pipeline.stages.size(); ++stage) {
    lines += banner_line(stage == 0 ? "stages" : "", str(stage, ": ", to_string(pipeline.stages[stage])));
  }
  return lines +
         banner_line("", str("in ", pipeline.groups, pipeline.groups == 1 ? " group" : " groups", " of documents, ",
                             number("%.0f", 100.0 * pipeline.bubble()), " % of the time idle (the bubble)"));
}

std::string banner_of_model(const Recipe& recipe, const Blueprint& blueprint, const MeshShape& mesh,
                            const MemoryPlan& plan) {
  const bool with_mtp = recipe.mtp.trains();
  const StepTokens step{recipe.train.batch * recipe.data.max_tokens, SeenKeys({{recipe.data.max_tokens, 1}})};
  return banner_line("model",
                     str(recipe.model.path,
                         recipe.model.weights == WeightOrigin::kRandom ? " (weights drawn from the seed)" : "")) +
         banner_line("", model_text(blueprint)) + banner_line("rotary", rotary_text(blueprint.rotary)) +
         banner_line("experts", experts_text(blueprint)) +
         (with_mtp ? banner_line("mtp", str("one module, loss weight ", number("%g", recipe.mtp.loss_weight))) : "") +
         banner_line("base", str(freezes_maps(recipe, blueprint) ? to_string(recipe.model.base) : "trained weights",
                                 ", compute ", to_string(recipe.model.compute))) +
         banner_line("adapter", adapter_text(recipe)) +
         banner_line("trains", trained_text(plan, count_parameters(blueprint, with_mtp))) +
         banner_line("work", str(work_text(step_work(blueprint, recipe, plan.kept, step, plan.pipeline)),
                                 ", in documents of ", recipe.data.max_tokens)) +
         (plan.kept.steps() > 0 ? banner_line("keeps", str(to_string(plan.kept), ", of their way down")) : "") +
         banner_line("mesh", str(to_string(mesh), ": ", mesh.num_ranks(), mesh.num_ranks() == 1 ? " rank" : " ranks",
                                 ", ", blueprint.router.experts / mesh.ep, " experts of each layer a rank",
                                 mesh.expert_tp > 1 ? str(", 1/", mesh.expert_tp, " of each") : "")) +
         pipeline_lines(plan.pipeline);
}

}  // namespace moetune
