#include "trainer/validate.h"

#include <filesystem>
#include <functional>
#include <vector>

#include "lora/peft_files.h"
#include "moe/inventory.h"
#include "parallel/base/error.h"
#include "parallel/safetensors.h"
#include "trainer/banner.h"
#include "trainer/documents.h"
#include "trainer/memory_plan.h"

namespace moetune {
namespace {

namespace fs = std::filesystem;

/// Collects what is wrong, so that the user hears of all of it at once.
class Findings {
 public:
  explicit Findings(const Recipe& recipe) : recipe_(recipe) {}

  void add(const std::string& key, const std::string& what) { text_ += str(text_.empty() ? "" : "\n", recipe_.origin(key), ": ", key, ": ", what); }
  /// Runs `check`; its UserError becomes a finding.
  void attempt(const std::string& key, const std::function<void()>& check) {
    try {
      check();
    } catch (const UserError& error) {
      add(key, error.what());
    }
  }
  bool empty() const { return text_.empty(); }
  void raise_if_any() const {
    if (!text_.empty()) throw UserError(text_);
  }

 private:
  const Recipe& recipe_;
  std::string text_;
};

/// Every tensor that a run reads is in the checkpoint with the shape that config.json gives.
void check_tensors(const ModelConfig& config, const std::string& folder_path, bool with_mtp) {
  const SafetensorsFolder folder(folder_path);
  auto require = [&](const std::string& name, const std::vector<int64_t>& shape) {
    const TensorInfo& info = folder.at(name);
    if (info.shape == shape) return;
    throw UserError(moetune::str(info.file, ": ", name, " has shape ", at::IntArrayRef(info.shape), "; config.json asks for ", at::IntArrayRef(shape)));
  };
  require("model.embed_tokens.weight", {config.vocab, config.width});
  require("model.norm.weight", {config.width});
  if (!config.tied_embeddings) require("lm_head.weight", {config.vocab, config.width});
  for (const LinearMap& map : linear_maps(config, with_mtp)) {
    const std::string name = map.name() + ".weight";
    if (map.stack == 0) require(name, {map.outputs, map.inputs});
    for (int64_t expert = 0; expert < map.stack; ++expert) require(expert_name(name, expert), {map.outputs, map.inputs});
  }
}

void check_data(const Recipe& recipe, const std::string& key, const std::string& path, Findings& findings) {
  if (!fs::is_regular_file(path)) {
    findings.add(key, str(path, ": no such file; a path from the current folder"));
    return;
  }
  findings.attempt(key, [&] {
    if (Documents::is_tokenised_jsonl(path)) return;
    const fs::path tokenizer = fs::path(recipe.model.path) / "tokenizer.json";
    if (!fs::exists(tokenizer)) throw UserError(str(path, " holds text, but ", tokenizer.string(), " does not exist; put it there, or give input_ids and labels"));
  });
}

MeshShape resolved_mesh(const Recipe& recipe, int64_t world_size) {
  MeshShape shape{recipe.mesh.pp, recipe.mesh.dp.value_or(world_size > 0 ? 0 : 1), recipe.mesh.ep, recipe.mesh.tp};
  return resolve_mesh(shape, world_size > 0 ? world_size : shape.num_ranks());
}

}  // namespace

std::string validate(const Recipe& recipe, const std::string& recipe_path, int64_t world_size) {
  Findings findings(recipe);
  const bool with_mtp = recipe.mtp.loss_weight > 0.0;
  check_data(recipe, "data.train", recipe.data.train, findings);
  if (recipe.data.eval) check_data(recipe, "data.eval", *recipe.data.eval, findings);
  if (recipe.adapter && recipe.adapter->from) findings.attempt("adapter.from", [&] { read_peft_config(*recipe.adapter->from); });
  MeshShape mesh;
  bool mesh_resolved = false;
  findings.attempt("mesh", [&] {
    mesh = resolved_mesh(recipe, world_size);
    mesh_resolved = true;
  });
  std::string text;
  findings.attempt("model.path", [&] {
    const ModelConfig config = load_model_config(recipe.model.path);
    if (with_mtp && config.num_mtp_layers < 1) findings.add("mtp.loss_weight", "above 0, but the model has no MTP module (num_nextn_predict_layers); set it to 0");
    if (recipe.model.weights == WeightOrigin::kPretrained) findings.attempt("model.path", [&] { check_tensors(config, recipe.model.path, with_mtp); });
    if (!mesh_resolved) return;
    const MemoryPlan plan = plan_memory(config, recipe, mesh, device_type(recipe));
    text = banner_line("recipe", recipe_path + (world_size > 0 ? "" : recipe.mesh.dp ? "" : " (mesh.dp auto: shown for 1)")) + banner_of_model(recipe, config, mesh, plan) +
           banner_line("memory", str("of each rank, for ", recipe.train.batch, " sequences of ", recipe.data.max_tokens, " tokens a step")) +
           memory_table(plan, /*with_formulas=*/true) + "\n";
  });
  findings.raise_if_any();
  return text;
}

}  // namespace moetune
