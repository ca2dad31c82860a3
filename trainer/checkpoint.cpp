#include "trainer/checkpoint.h"

#include <algorithm>
#include <cstdio>
#include <set>

#include <nlohmann/json.hpp>

#include "parallel/base/error.h"
#include "parallel/base/files.h"
#include "parallel/base/log.h"
#include "parallel/base/sha256.h"
#include "parallel/tensor_io.h"

namespace moetune {
namespace {

namespace fs = std::filesystem;
using nlohmann::ordered_json;

constexpr const char* kFormat = "moetune-checkpoint-1";

std::string numbered(const char* pattern, int64_t first, int64_t second = 0) {
  char text[64];
  std::snprintf(text, sizeof text, pattern, static_cast<long>(first), static_cast<long>(second));
  return text;
}

std::string bias_name(size_t block) { return str("router_bias/", block); }

/// Where a parameter stands among the layer's experts; null for a plain tensor.
const ParameterInfo* stack_of(const Parameter& parameter) { return parameter.info().num_experts > 0 ? &parameter.info() : nullptr; }

/// The tensors of one parameter under their saved names.
std::vector<std::pair<std::string, at::Tensor>> parts_of(Parameter& parameter, Optimizer::Moments& moments) {
  return {{"master/" + parameter.name(), parameter.master()},
          {"first_moment/" + parameter.name(), moments.first},
          {"second_moment/" + parameter.name(), moments.second}};
}

ordered_json read_manifest(const fs::path& checkpoint) {
  const std::string path = (checkpoint / "manifest.json").string();
  ordered_json manifest = ordered_json::parse(read_text_file(path), nullptr, false);
  const auto is_text = [](const ordered_json& object, const char* key) { return object.contains(key) && object.at(key).is_string(); };
  const auto is_whole = [&] {
    if (!manifest.is_object() || !is_text(manifest, "format") || manifest.at("format") != kFormat) return false;
    for (const char* key : {"step", "optimizer_steps", "seed", "batch"}) {
      if (!manifest.contains(key) || !manifest.at(key).is_number_integer()) return false;
    }
    if (!is_text(manifest, "frozen_digest") || !is_text(manifest, "data_digest") || !manifest.contains("files") || !manifest.at("files").is_object()) return false;
    return std::all_of(manifest.at("files").begin(), manifest.at("files").end(), [&](const ordered_json& entry) { return is_text(entry, "sha256"); });
  };
  if (!is_whole()) throw UserError(str(path, ": is not a whole manifest of format ", kFormat));
  return manifest;
}

/// The files of a checkpoint, looked up by tensor.
class SavedTensors {
 public:
  explicit SavedTensors(const fs::path& checkpoint, const ordered_json& manifest) : checkpoint_(checkpoint) {
    for (const auto& [name, entry] : manifest.at("files").items()) {
      if (fs::path(name).extension() == ".safetensors") files_.push_back(std::make_unique<SafetensorsFile>((checkpoint / name).string()));
    }
  }

  /// Copies the saved tensor `name` into `target`; a stack comes expert by expert from the files that hold them.
  void read(const std::string& name, at::Tensor& target, const ParameterInfo* stack) {
    int64_t found = 0;
    for (const auto& file : files_) {
      const TensorInfo* info = file->find(name);
      if (info == nullptr) continue;
      require(info->shape.size() == static_cast<size_t>(target.dim()), name, info->shape, target);
      if (stack == nullptr) {
        require(at::IntArrayRef(info->shape) == target.sizes(), name, info->shape, target);
        target.copy_(read_tensor(*file, name));
        found = target.size(0);
        break;
      }
      const int64_t saved_first = std::stoll(file->metadata().at("first_expert"));
      const int64_t first = std::max(saved_first, stack->first_expert);
      const int64_t end = std::min(saved_first + info->shape[0], stack->first_expert + target.size(0));
      if (first >= end) continue;
      require(at::IntArrayRef(info->shape).slice(1) == target.sizes().slice(1), name, info->shape, target);
      target.narrow(0, first - stack->first_expert, end - first).copy_(read_rows(*file, name, first - saved_first, end - first));
      found += end - first;
    }
    if (found != (target.dim() > 0 ? target.size(0) : 1)) {
      throw UserError(str(checkpoint_.string(), ": has no (or not all of) ", name, "; was the run made with another adapter or model?"));
    }
  }
  /// Distinct names: a stack lies in several files.
  size_t num_tensors() const {
    std::set<std::string> names;
    for (const auto& file : files_) {
      for (const std::string& name : file->names()) names.insert(name);
    }
    return names.size();
  }

 private:
  void require(bool fits, const std::string& name, const std::vector<int64_t>& saved, const at::Tensor& target) const {
    if (!fits) throw UserError(moetune::str(checkpoint_.string(), ": ", name, " was saved as ", at::IntArrayRef(saved), ", this run has ", target.sizes()));
  }
  fs::path checkpoint_;
  std::vector<std::unique_ptr<SafetensorsFile>> files_;
};

}  // namespace

std::vector<fs::path> Checkpoints::list(const fs::path& folder) {
  std::vector<fs::path> found;
  if (!fs::is_directory(folder)) return found;
  for (const auto& entry : fs::directory_iterator(folder)) {
    if (entry.is_directory() && entry.path().filename().string().rfind("step-", 0) == 0) found.push_back(entry.path());
  }
  std::sort(found.begin(), found.end());
  return found;
}

void Checkpoints::verify(const fs::path& checkpoint) {
  const ordered_json manifest = read_manifest(checkpoint);
  for (const auto& [name, entry] : manifest.at("files").items()) {
    const fs::path path = checkpoint / name;
    if (!fs::exists(path)) throw UserError(str(path.string(), ": is missing, manifest.json names it"));
    const std::string digest = sha256_of_file(path.string());
    if (digest != entry.at("sha256").get<std::string>()) {
      throw UserError(str(path.string(), ": has SHA-256 ", digest, ", manifest.json says ", entry.at("sha256").get<std::string>()));
    }
  }
}

void Checkpoints::save(int64_t step, TrainingState& state, int64_t keep_last) {
  const MeshCoordinates here = mesh_.here();
  const int64_t num_files = mesh_.shape().ep;
  const bool leads = mesh_.world().rank() == 0;
  const fs::path final_path = folder_ / numbered("step-%08ld", step);
  const fs::path temporary = folder_ / numbered(".saving-step-%08ld", step);
  if (leads) {
    fs::remove_all(temporary);
    fs::create_directories(temporary);
  }
  mesh_.world().barrier();
  if (here.dp == 0) {
    std::vector<std::pair<std::string, at::Tensor>> tensors;
    size_t next = 0;
    int64_t first_expert = 0;
    for (Parameter& parameter : state.model.parameters.all()) {
      Optimizer::Moments& moments = state.optimizer.moments()[next++];
      const bool stack = parameter.info().replicas == Replicas::kExpertReplicas;
      if (stack) first_expert = parameter.info().first_expert;
      if (stack || here.ep == 0) {
        for (auto& part : parts_of(parameter, moments)) tensors.push_back(part);
      }
    }
    for (size_t block = 0; here.ep == 0 && block < state.model.blocks.size(); ++block) {
      if (state.model.blocks[block].is_moe()) tensors.emplace_back(bias_name(block), state.model.blocks[block].router()->bias().cpu());
    }
    write_tensors((temporary / numbered("state-%05ld-of-%05ld.safetensors", here.ep, num_files)).string(), tensors,
                  {{"first_expert", std::to_string(first_expert)}});
  }
  mesh_.world().barrier();
  if (leads) {
    write_text_atomically((temporary / "recipe.yaml").string(), state.recipe_text);
    ordered_json manifest;
    manifest["format"] = kFormat;
    manifest["step"] = step;
    manifest["optimizer_steps"] = state.optimizer.steps_taken();
    manifest["seed"] = state.seed;
    manifest["batch"] = state.batch;
    manifest["mesh"] = to_string(mesh_.shape());
    manifest["frozen_digest"] = state.frozen_digest;
    manifest["data_digest"] = state.data_digest;
    std::vector<fs::path> files;
    for (const auto& entry : fs::directory_iterator(temporary)) files.push_back(entry.path());
    std::sort(files.begin(), files.end());
    for (const fs::path& path : files) {
      manifest["files"][path.filename().string()] = {{"sha256", sha256_of_file(path.string())}, {"bytes", fs::file_size(path)}};
    }
    write_text_atomically((temporary / "manifest.json").string(), manifest.dump(2) + "\n");
    fs::remove_all(final_path);
    fs::rename(temporary, final_path);
    fsync_folder_of(final_path.string());
    // A checkpoint of a later step is a damaged one that the run was not resumed from: it takes no one's place.
    std::vector<fs::path> all = list(folder_);
    all.erase(std::upper_bound(all.begin(), all.end(), final_path), all.end());
    for (size_t i = 0; i + static_cast<size_t>(keep_last) < all.size(); ++i) fs::remove_all(all[i]);
  }
  mesh_.world().barrier();
}

std::optional<int64_t> Checkpoints::load_latest(TrainingState& state) {
  std::vector<fs::path> all = list(folder_);
  if (all.empty()) return std::nullopt;
  std::string damage;
  while (!all.empty()) {
    try {
      verify(all.back());
      break;
    } catch (const UserError& error) {
      damage = error.what();
      if (mesh_.world().rank() == 0) log_warn(str("checkpoint ", all.back().filename().string(), " is damaged and passed over: ", damage));
      all.pop_back();
    }
  }
  if (all.empty()) throw UserError(str(folder_.string(), ": no checkpoint is whole; the last one tried: ", damage));
  restore(all.back(), state);
  const int64_t step = read_manifest(all.back()).at("step").get<int64_t>();
  log_info(str("resumed from ", all.back().string()));
  return step;
}

void Checkpoints::restore(const fs::path& checkpoint, TrainingState& state) {
  const ordered_json manifest = read_manifest(checkpoint);
  auto same = [&](const char* key, const auto& now, const char* what) {
    const auto saved = manifest.at(key).get<std::decay_t<decltype(now)>>();
    if (saved != now) throw UserError(str(checkpoint.string(), ": ", what, " then ", saved, ", now ", now, "; a resumed run must go on with the same"));
  };
  same("seed", state.seed, "run.seed was");
  same("batch", state.batch, "train.batch was");
  same("data_digest", state.data_digest, "the training data had the digest");
  same("frozen_digest", state.frozen_digest, "the frozen weights had the digest");

  load_weights(checkpoint, state.model);
  SavedTensors saved(checkpoint, manifest);
  at::NoGradGuard no_grad;
  size_t next = 0, expected = 0;
  for (Parameter& parameter : state.model.parameters.all()) {
    const ParameterInfo* stack = stack_of(parameter);
    for (auto& [name, tensor] : parts_of(parameter, state.optimizer.moments()[next])) {
      if (tensor.is_same(parameter.master())) continue;
      saved.read(name, tensor, stack);
    }
    expected += 3;
    ++next;
  }
  for (const Block& block : state.model.blocks) expected += block.is_moe() ? 1 : 0;
  if (saved.num_tensors() != expected) {
    throw UserError(str(checkpoint.string(), ": holds ", saved.num_tensors(), " tensors, this run has ", expected, "; was it made with other adapter targets?"));
  }
  state.optimizer.set_steps_taken(manifest.at("optimizer_steps").get<int64_t>());
}

void Checkpoints::load_weights(const fs::path& checkpoint, Model& model) {
  SavedTensors saved(checkpoint, read_manifest(checkpoint));
  at::NoGradGuard no_grad;
  for (Parameter& parameter : model.parameters.all()) {
    saved.read("master/" + parameter.name(), parameter.master(), stack_of(parameter));
    parameter.refresh_working();
  }
  for (size_t block = 0; block < model.blocks.size(); ++block) {
    if (!model.blocks[block].is_moe()) continue;
    at::Tensor bias = model.blocks[block].router()->bias();
    saved.read(bias_name(block), bias, nullptr);
  }
}

}  // namespace moetune
