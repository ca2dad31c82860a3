#include "trainer/exports/saved_run.h"

#include <algorithm>
#include <cmath>

#include <nlohmann/json.hpp>

#include "lora/adapter.h"
#include "parallel/base/error.h"
#include "parallel/base/files.h"
#include "parallel/base/log.h"
#include "parallel/tensor_io.h"
#include "trainer/checkpoint.h"

namespace moetune {
namespace {

namespace fs = std::filesystem;

constexpr std::string_view kMaster = "master/";
constexpr std::string_view kRouterBias = "router_bias/";
constexpr std::string_view kLoraA = ".lora_A.weight";
constexpr std::string_view kLoraB = ".lora_B.weight";

fs::path whole_checkpoint(const fs::path& path) {
  if (!fs::is_directory(path)) throw UserError(str(path.string(), ": is no folder; RUN is a run folder or one of its checkpoints"));
  if (fs::exists(path / "manifest.json")) {
    Checkpoints::verify(path);
    return path;
  }
  std::vector<fs::path> all = Checkpoints::list(path / "checkpoints");
  if (all.empty()) throw UserError(str(path.string(), ": holds no checkpoint (checkpoints/step-*/manifest.json); has the run saved one yet?"));
  std::string damage;
  for (; !all.empty(); all.pop_back()) {
    try {
      Checkpoints::verify(all.back());
      return all.back();
    } catch (const UserError& error) {
      damage = error.what();
      log_warn(str("checkpoint ", all.back().filename().string(), " is damaged and passed over: ", damage));
    }
  }
  throw UserError(str(path.string(), ": no checkpoint is whole; the last one tried: ", damage));
}

}  // namespace

std::string router_bias_name(int64_t layer) { return str("model.layers.", layer, ".mlp.gate.e_score_correction_bias"); }

std::string adapter_group(const std::string& path) {
  if (path.find(".self_attn.") != std::string::npos) return "attention";
  if (path.find(".mlp.experts.") != std::string::npos) return "experts";
  if (path.find(".mlp.shared_experts.") != std::string::npos) return "shared_expert";
  return "dense_mlp";
}

int64_t layer_of_name(const std::string& name) {
  constexpr std::string_view kLayers = "model.layers.";
  const size_t begin = name.find(kLayers);
  if (begin == std::string::npos) return -1;
  int64_t layer = 0;
  size_t i = begin + kLayers.size();
  const size_t first = i;
  for (; i < name.size() && name[i] >= '0' && name[i] <= '9' && i < first + 9; ++i) layer = 10 * layer + (name[i] - '0');
  return i == first ? -1 : layer;
}

SavedRun::SavedRun(const fs::path& run_or_checkpoint)
    : checkpoint_(whole_checkpoint(run_or_checkpoint)), recipe_(load_recipe((checkpoint_ / "recipe.yaml").string())) {
  const auto manifest = nlohmann::json::parse(read_text_file((checkpoint_ / "manifest.json").string()));  // verified above
  step_ = manifest.at("step").get<int64_t>();
  for (const auto& [name, entry] : manifest.at("files").items()) {
    if (fs::path(name).extension() == ".safetensors") files_.push_back(std::make_unique<SafetensorsFile>((checkpoint_ / name).string()));
  }
  index_tensors();
  if (recipe_.adapter) index_adapters();
}

void SavedRun::index_tensors() {
  auto add = [&](const std::string& name, Place place) {
    if (!places_.emplace(name, std::move(place)).second) throw UserError(str(checkpoint_.string(), ": two files hold ", name));
  };
  for (const auto& file : files_) {
    for (const std::string& saved_name : file->names()) {
      const TensorInfo& info = file->at(saved_name);
      if (saved_name.rfind(kRouterBias, 0) == 0) biases_[std::stoll(saved_name.substr(kRouterBias.size()))] = file.get();
      if (saved_name.rfind(kMaster, 0) != 0) continue;
      const std::string name = saved_name.substr(kMaster.size());
      if (name.find('*') == std::string::npos) {
        add(name, {file.get(), saved_name, -1, info.shape});
        continue;
      }
      const int64_t first_expert = std::stoll(file->metadata().at("first_expert"));
      for (int64_t row = 0; row < info.shape.at(0); ++row) {
        add(expert_name(name, first_expert + row), {file.get(), saved_name, row, {info.shape.begin() + 1, info.shape.end()}});
      }
    }
  }
  if (places_.empty()) throw UserError(str(checkpoint_.string(), ": holds no trained tensor"));
}

void SavedRun::index_adapters() {
  const AdapterRecipe& recipe = *recipe_.adapter;
  for (const auto& [name, place] : places_) {
    if (name.size() <= kLoraA.size() || name.compare(name.size() - kLoraA.size(), kLoraA.size(), kLoraA) != 0) continue;
    SavedAdapter adapter;
    adapter.path = name.substr(0, name.size() - kLoraA.size());
    adapter.group = adapter_group(adapter.path);
    adapter.leaf = adapter.path.substr(adapter.path.rfind('.') + 1);
    adapter.layer = layer_of_name(adapter.path);
    adapter.rank = place.shape.at(0);
    adapter.inputs = place.shape.at(1);
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

const std::vector<int64_t>& SavedRun::shape(const std::string& name) const {
  const auto found = places_.find(name);
  if (found == places_.end()) throw UserError(str(checkpoint_.string(), ": holds no ", name));
  return found->second.shape;
}

at::Tensor SavedRun::read(const std::string& name) const {
  shape(name);
  const Place& place = places_.at(name);
  const at::Tensor saved = place.row < 0 ? read_tensor(*place.file, place.saved_name) : read_rows(*place.file, place.saved_name, place.row, 1)[0];
  return saved.to(at::kFloat).contiguous();
}

std::vector<int64_t> SavedRun::router_layers() const {
  std::vector<int64_t> layers;
  for (const auto& [layer, file] : biases_) layers.push_back(layer);
  return layers;
}

at::Tensor SavedRun::router_bias(int64_t layer) const {
  MT_CHECK(biases_.count(layer) > 0, "no router in layer ", layer);
  return read_tensor(*biases_.at(layer), str(kRouterBias, layer)).to(at::kFloat).contiguous();
}

// The module's block is a MoE block behind the last layer, and every MoE block's bias is saved.
int64_t SavedRun::mtp_layer() const { return recipe_.mtp.loss_weight > 0.0 && !biases_.empty() ? biases_.rbegin()->first : -1; }

std::string SavedRun::origin() const { return fs::absolute(checkpoint_).lexically_normal().string(); }

}  // namespace moetune
