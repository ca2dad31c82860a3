#include "trainer/plan/validate.h"

#include <filesystem>
#include <fstream>
#include <functional>
#include <vector>

#include "lora/adapters/peft_files.h"
#include "moe/inventory.h"
#include "parallel/base/error.h"
#include "parallel/bytes/safetensors.h"
#include "parallel/device/device_memory.h"
#include "trainer/data/data_files.h"
#include "trainer/data/documents.h"
#include "trainer/plan/memory_plan.h"
#include "trainer/plan/model_banner.h"
#include "trainer/recipe/recipe_meaning.h"

namespace moetune {
namespace {

namespace fs = std::filesystem;

/// Collects what is wrong, so that the user hears of all of it at once.
class Findings {
 public:
  void add(const std::string& what) { text_ += (text_.empty() ? "" : "\n") + what; }
  /// Runs `check`; its UserError becomes a finding, behind `place` where it does not name its own.
  void attempt(const std::string& place, const std::function<void()>& check) {
    try {
      check();
    } catch (const UserError& error) {
      add((place.empty() ? "" : place + ": ") + error.what());
    }
  }
  void raise_if_any() const {
    if (!text_.empty()) throw UserError(text_);
  }

 private:
  std::string text_;
};

/// Embedding, head and every linear map are in the checkpoint with the shapes that config.json gives.
void check_tensors(const ModelConfig& config, const std::string& folder_path, bool with_mtp) {
  const SafetensorsFolder folder(folder_path);
  auto require = [&](const std::string& name, const std::vector<int64_t>& shape) {
    const TensorInfo& info = folder.at(name);
    if (info.shape == shape) return;
    throw UserError(moetune::str(info.file, ": ", name, " has shape ", at::IntArrayRef(info.shape),
                                 "; config.json asks for ", at::IntArrayRef(shape)));
  };
  require("model.embed_tokens.weight", {config.vocab, config.width});
  require("model.norm.weight", {config.width});
  if (!config.tied_embeddings) require("lm_head.weight", {config.vocab, config.width});
  const std::string projection = mtp_projection(config).name() + ".weight";
  if (with_mtp && folder.find(projection) == nullptr) {
    throw UserError(str(folder_path, ": mtp.loss_weight is above 0, but the checkpoint has no MTP module (", projection,
                        "); set it to 0"));
  }
  for (const LinearMap& map : linear_maps(config, with_mtp)) {
    const std::string name = map.name() + ".weight";
    if (map.stack == 0) require(name, {map.outputs, map.inputs});
    for (int64_t expert = 0; expert < map.stack; ++expert) {
      require(expert_name(name, expert), {map.outputs, map.inputs});
    }
  }
}

/// Whether a file holds JSON lines as they are: what is packed, an array or Parquet is looked into when it is prepared.
bool is_plain_lines(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  char first = 0;
  return file >> first && first == '{';
}

void check_data(const Recipe& recipe, const std::string& key, const DataFiles& files) {
  const fs::path tokenizer = fs::path(recipe.model.path) / "tokenizer.json";
  const bool has_tokenizer = fs::exists(tokenizer);
  for (const DataFile& file : select_files(recipe, key, files).files) {
    if (has_tokenizer || !is_plain_lines(file.path) || Documents::is_tokenised_jsonl(file.path)) continue;
    throw UserError(str(recipe.origin(key), ": ", key, ": ", file.path, " holds text, but ", tokenizer.string(),
                        " does not exist; put it there, or give input_ids and labels"));
  }
}

}  // namespace

std::string validate(const Recipe& recipe, const std::string& recipe_path, int64_t world_size) {
  Findings findings;
  const bool with_mtp = recipe.mtp.trains();
  if (world_size == 0) world_size = recipe.mesh.pp * recipe.mesh.dp.value_or(1) * recipe.mesh.ep * recipe.mesh.tp;
  findings.attempt("", [&] { check_data(recipe, "data.train", recipe.data.train); });
  if (recipe.data.eval) findings.attempt("", [&] { check_data(recipe, "data.eval", *recipe.data.eval); });
  if (recipe.adapter && recipe.adapter->from) {
    findings.attempt(recipe.origin("adapter.from"), [&] { read_peft_config(*recipe.adapter->from); });
  }
  ModelConfig config;
  findings.attempt(recipe.origin("model.path"), [&] {
    config = load_model_config(recipe.model.path);
    if (recipe.model.weights == WeightOrigin::kPretrained) check_tensors(config, recipe.model.path, with_mtp);
  });
  if (config.num_layers == 0) findings.raise_if_any();  // without a model there is nothing to hold the rest against
  if (with_mtp && config.num_mtp_layers < 1) {
    findings.add(
        str(recipe.origin("mtp.loss_weight"),
            ": mtp.loss_weight: above 0, but the model has no MTP module (num_nextn_predict_layers); set it to 0"));
  }
  findings.attempt(recipe.origin("adapter.targets"), [&] {
    AdapterTargets targets = adapter_targets(recipe);
    linear_maps(config, with_mtp, &targets);
    targets.require_all_matched();
  });
  MeshShape mesh;
  findings.attempt("", [&] { mesh = mesh_shape(recipe, config, world_size); });
  findings.raise_if_any();

  const MemoryPlan plan =
      plan_memory(config, recipe, mesh, {device_type(recipe), device_memory_bytes(device_type(recipe)), 0});
  return banner_line("recipe", recipe_path) + banner_of_model(recipe, config, mesh, plan) +
         banner_line("memory", str("of each rank, for ", recipe.train.batch, " sequences of ", recipe.data.max_tokens,
                                   " tokens a step")) +
         memory_table(plan, /*with_formulas=*/true) + "\n";
}

}  // namespace moetune
