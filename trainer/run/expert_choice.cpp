#include "trainer/run/expert_choice.h"

#include <algorithm>
#include <cstdio>

#include <nlohmann/json.hpp>

#include "parallel/base/error.h"
#include "trainer/run/evaluation.h"
#include "trainer/state/checkpoint_folder.h"
#include "trainer/state/manifest.h"
#include "trainer/state/saved_state.h"

namespace moetune {
namespace {

using nlohmann::ordered_json;

/// By LayerId::number(): whether anything there, on whichever stage, waits for the choice of its experts.
std::vector<bool> open_layers(Assembly& run) {
  at::Tensor open = at::zeros({run.blueprint.num_layers() + 1}, at::kLong);
  for (const OpenStack& stack : run.model->open_stacks) open[stack.layer.number()] = 1;
  open = open.to(run.device);
  run.mesh->pp().all_reduce_max(open);
  open = open.cpu();
  return std::vector<bool>(open.const_data_ptr<int64_t>(), open.const_data_ptr<int64_t>() + open.numel());
}

}  // namespace

std::vector<std::string> ChosenExperts::lines(const std::string& key) const {
  std::vector<std::string> lines = {str(key, ": chosen by load on ", tokens, " tokens")};
  for (const auto& [layer, chosen] : experts) {
    std::string numbers;
    for (const int64_t expert : chosen) numbers += str(numbers.empty() ? "" : ", ", expert);
    char percent[16] = "";
    if (share.count(layer) > 0) std::snprintf(percent, sizeof percent, "%.1f", 100.0 * share.at(layer));
    lines.push_back(str("  layer ", layer, ": ", numbers, " (", percent, " % of its load)"));
  }
  return lines;
}

ChosenExperts experts_by_load(Assembly& run, Batches& batches, int64_t num_steps, int64_t count,
                              RankProgress* progress) {
  Sweep sweep(*run.model, run.sweep_options, {}, progress);
  at::Tensor load_LE;
  ChosenExperts chosen;
  for (int64_t step = 0; step < num_steps; ++step) {
    const RankBatch local = own_part(run, batches, step);
    const at::Tensor own_LE = sweep.route(own_groups(run, local)).load_LE;
    load_LE = load_LE.defined() ? load_LE + own_LE : own_LE;
    chosen.tokens += local.global.tokens;
  }
  MT_CHECK(load_LE.defined(), "no load was counted in ", num_steps, " steps");
  sum_over_mesh(run, load_LE);
  load_LE = load_LE.cpu().contiguous();
  const std::vector<bool> open = open_layers(run);
  int64_t row = 0;
  for (const LayerId layer : run.blueprint.blocks(run.sweep_options.pipeline.mtp)) {
    if (!run.blueprint.has_experts(layer)) continue;
    const at::Tensor load_E = load_LE[row++];
    const std::vector<int64_t> loads(load_E.const_data_ptr<int64_t>(),
                                     load_E.const_data_ptr<int64_t>() + load_E.numel());
    if (!open[layer.number()]) continue;
    const std::vector<int64_t> experts = greatest_loads(loads, count);
    int64_t all = 0, of_chosen = 0;
    for (const int64_t load : loads) all += load;
    for (const int64_t expert : experts) of_chosen += loads[expert];
    chosen.share[layer.number()] = all > 0 ? static_cast<double>(of_chosen) / static_cast<double>(all) : 0.0;
    chosen.experts[layer.number()] = experts;
  }
  return chosen;
}

// Headers alone: what the checkpoint holds is checked when it is loaded, and all of a run name the same experts.
ExpertsOfLayers saved_experts(const std::filesystem::path& checkpoints) {
  std::vector<std::filesystem::path> all = list_checkpoints(checkpoints);
  std::string why;
  for (; !all.empty(); all.pop_back()) {
    try {
      ExpertsOfLayers chosen = SavedState(all.back()).chosen_experts();
      if (!chosen.empty()) return chosen;
      why = str(all.back().string(), ": names no experts");
    } catch (const UserError& error) {
      why = error.what();
    }
  }
  throw UserError(str(checkpoints.string(), ": no checkpoint says which experts were chosen: ", why));
}

std::string to_json(const ChosenExperts& chosen) {
  ordered_json layers = ordered_json::object();
  for (const auto& [layer, experts] : chosen.experts) {
    ordered_json entry = {{"experts", experts}};
    if (chosen.share.count(layer) > 0) entry["share"] = chosen.share.at(layer);
    layers[std::to_string(layer)] = std::move(entry);
  }
  return ordered_json{{"tokens", chosen.tokens}, {"layers", std::move(layers)}}.dump(2) + "\n";
}

ChosenExperts parse_chosen_experts(const std::string& text) {
  ChosenExperts chosen;
  const auto json = nlohmann::json::parse(text);
  chosen.tokens = json.at("tokens");
  for (const auto& [layer, entry] : json.at("layers").items()) {
    entry.at("experts").get_to(chosen.experts[std::stoll(layer)]);
    if (entry.contains("share")) chosen.share[std::stoll(layer)] = entry.at("share");
  }
  return chosen;
}

}  // namespace moetune
