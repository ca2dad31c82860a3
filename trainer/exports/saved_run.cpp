#include "trainer/exports/saved_run.h"
#include "trainer/recipe/recipe_load.h"

#include "lora/adapters/adapter.h"
#include "parallel/base/error.h"

namespace moetune {
namespace {

namespace fs = std::filesystem;

constexpr std::string_view kLoraA = ".lora_A.weight";
constexpr std::string_view kLoraB = ".lora_B.weight";

/// The newest whole checkpoint of a run that may go on meanwhile and remove it for newer ones.
fs::path newest_of_running(const fs::path& folder) {
  constexpr int kAttempts = 5;
  for (int attempt = 1;; ++attempt) {
    bool rotated = false;
    const auto damage = [&](const fs::path& checkpoint) {
      const std::string found = damage_of(checkpoint);
      rotated |= !found.empty() && !fs::exists(checkpoint);
      return rotated ? "" : found;  // no damage: what there is now is to be listed anew
    };
    const fs::path newest = newest_whole(folder, damage);
    if (!rotated || attempt == kAttempts) return newest;
  }
}

fs::path whole_checkpoint(const fs::path& path) {
  if (path.empty()) throw UserError("the path of the run is empty; RUN is a run folder or one of its checkpoints");
  if (!fs::is_directory(path)) {
    throw UserError(str(path.string(), ": is no folder; RUN is a run folder or one of its checkpoints"));
  }
  if (fs::exists(fs::symlink_status(path / "manifest.json")) ||
      (step_of_name(path) && !fs::exists(path / "checkpoints"))) {
    verify_checkpoint(path);
    return path;
  }
  const fs::path newest = newest_of_running(path / "checkpoints");
  if (newest.empty()) {
    throw UserError(
        str(path.string(), ": holds no checkpoint (checkpoints/step-*/manifest.json); has the run saved one yet?"));
  }
  return newest;
}

}  // namespace

fs::path best_checkpoint(const fs::path& run) {
  const fs::path newest = whole_checkpoint(run);
  if (!fs::is_directory(run / "checkpoints")) {
    throw UserError(str(run.string(), ": is one checkpoint; --best chooses among those of a run folder"));
  }
  const std::vector<BestStep> best = read_manifest(newest).best;
  if (best.empty()) {
    throw UserError(str(run.string(), ": kept no checkpoint as the best (checkpoint.keep_best was 0, or nothing was ",
                        "evaluated before ", newest.filename().string(), "); name a checkpoint instead of --best"));
  }
  const fs::path checkpoint = run / "checkpoints" / checkpoint_name(best.front().step);
  const std::string damage = damage_of(checkpoint);
  if (!damage.empty()) throw UserError(str("the best checkpoint, ", checkpoint.string(), ", is damaged: ", damage));
  return checkpoint;
}

std::string adapter_group(const std::string& path) {
  if (path.find(".self_attn.") != std::string::npos) return "attention";
  if (path.find(".experts.") != std::string::npos) return "experts";
  if (path.find(".shared_expert") != std::string::npos) return "shared_expert";
  return "dense_mlp";
}

int64_t layer_of_name(const std::string& name) {
  constexpr std::string_view kLayers = "model.layers.";
  const size_t begin = name.find(kLayers);
  if (begin == std::string::npos) return -1;
  int64_t layer = 0;
  size_t i = begin + kLayers.size();
  const size_t first = i;
  for (; i < name.size() && name[i] >= '0' && name[i] <= '9' && i < first + 9; ++i) {
    layer = 10 * layer + (name[i] - '0');
  }
  return i == first ? -1 : layer;
}

SavedRun::SavedRun(const fs::path& run_or_checkpoint)
    : state_(whole_checkpoint(run_or_checkpoint)),
      recipe_(parse_recipe(read_checkpoint_text(state_.checkpoint(), state_.manifest(), "recipe.yaml"),
                           (state_.checkpoint() / "recipe.yaml").string())) {
  index_tensors();
  if (recipe_.adapter) index_adapters();
}

void SavedRun::index_tensors() {
  for (const std::string& name : state_.names()) {
    TensorBlock block{state_.shape(name), std::vector<int64_t>(state_.shape(name).size(), 0), state_.shape(name)};
    if (name.find('*') == std::string::npos) {
      places_[name] = {name, block};
      continue;
    }
    block.shape[0] = 1;
    const std::vector<int64_t>& experts = state_.experts(name);
    for (int64_t& row = block.at[0]; row < block.whole[0]; ++row) {
      const int64_t expert = experts.empty() ? row : experts[row];
      places_[expert_name(name, expert)] = {name, block, expert};
    }
  }
}

void SavedRun::index_adapters() {
  const AdapterRecipe& recipe = *recipe_.adapter;
  for (const auto& [name, place] : places_) {
    if (name.size() <= kLoraA.size() || name.compare(name.size() - kLoraA.size(), kLoraA.size(), kLoraA) != 0) continue;
    SavedAdapter adapter;
    adapter.path = name.substr(0, name.size() - kLoraA.size());
    adapter.module = place.saved_name.substr(0, place.saved_name.size() - kLoraA.size());
    if (place.saved_name != name) adapter.expert = place.expert;
    const std::string& joint = state_.joint(place.saved_name);
    if (!joint.empty()) adapter.joint = joint.substr(0, joint.size() - kLoraA.size());
    const std::string& group = state_.group(place.saved_name);
    adapter.group = group.empty() ? adapter_group(adapter.path) : group;
    adapter.leaf = adapter.path.substr(adapter.path.rfind('.') + 1);
    adapter.layer = state_.layer(place.saved_name).value_or(layer_of_name(adapter.path));
    const std::vector<int64_t> a_shape = shape(name);
    adapter.rank = a_shape.at(0);
    adapter.inputs = a_shape.at(1);
    adapter.outputs = shape(str(adapter.path, kLoraB)).at(0);
    adapter.scale = adapter_scale(recipe.alpha, adapter.rank, recipe.rslora);
    adapters_.push_back(std::move(adapter));
  }
}

std::vector<std::string> SavedRun::names() const {
  std::vector<std::string> names;
  for (const auto& [name, place] : places_) names.push_back(name);
  return names;
}

std::vector<std::string> SavedRun::trained_tensors() const {
  std::vector<std::string> names;
  for (const auto& [name, place] : places_) {
    if (!name.ends_with(kLoraA) && !name.ends_with(kLoraB)) names.push_back(name);
  }
  return names;
}

const SavedRun::Place& SavedRun::place_of(const std::string& name) const {
  const auto found = places_.find(name);
  if (found == places_.end()) throw UserError(str(state_.checkpoint().string(), ": holds no ", name));
  return found->second;
}

std::vector<int64_t> SavedRun::shape(const std::string& name) const {
  const Place& place = place_of(name);
  return {place.block.shape.begin() + (place.saved_name == name ? 0 : 1), place.block.shape.end()};
}

at::Tensor SavedRun::read(const std::string& name) const {
  const Place& place = place_of(name);
  return state_.read(SavedKind::kMaster, place.saved_name, place.block).view(shape(name)).to(at::kFloat).contiguous();
}

at::Tensor SavedRun::router_bias(int64_t layer) const { return state_.router_bias(layer).to(at::kFloat).contiguous(); }

// The module's block is a MoE block behind the last layer, and every MoE block's bias is saved.
int64_t SavedRun::mtp_layer() const {
  return recipe_.mtp.trains() && !router_layers().empty() ? router_layers().back() : -1;
}

std::string SavedRun::origin() const { return fs::absolute(state_.checkpoint()).lexically_normal().string(); }

}  // namespace moetune
