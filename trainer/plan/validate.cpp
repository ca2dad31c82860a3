#include "trainer/plan/validate.h"

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <functional>
#include <map>
#include <vector>

#include "lora/adapters/peft_files.h"
#include "moe/disk_layout.h"
#include "moe/families/family.h"
#include "moe/inventory.h"
#include "moe/weight_source.h"
#include "parallel/base/error.h"
#include "parallel/bytes/finite.h"
#include "parallel/bytes/tensor_io.h"
#include "parallel/device/device_memory.h"
#include "trainer/data/data_files.h"
#include "trainer/data/documents.h"
#include "trainer/plan/memory_plan.h"
#include "trainer/plan/model_banner.h"
#include "trainer/plan/planned_mesh.h"
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

// Norms and biases; a disk with thousands of them answers within a second.
constexpr uint64_t kCheapBytes = 1 << 20;

/// All tensors of the model are in the checkpoint with the shapes that config.json gives and dtypes that are weights;
/// the small ones hold finite numbers.
void check_tensors(const Blueprint& blueprint, const std::string& folder_path, bool with_mtp) {
  const auto source = open_pretrained(folder_path);
  const std::string projection = blueprint.naming.prefix + mtp_projection(blueprint).name;
  if (with_mtp && !source->has(projection)) {
    throw UserError(str(folder_path, ": mtp.loss_weight is above 0, but the checkpoint has no MTP module (", projection,
                        "); set it to 0"));
  }
  std::map<std::string, StoredTensor> stored;
  for (StoredTensor& tensor : source->tensors()) stored.emplace(tensor.name, tensor);
  for (const DiskTensor& tensor : disk_tensors(blueprint, with_mtp)) {
    const auto found = stored.find(tensor.name);
    if (tensor.may_be_shared && found == stored.end()) continue;
    if (found == stored.end()) throw UserError(str(folder_path, ": there is no tensor ", tensor.name));
    if (found->second.shape != tensor.shape) {
      throw UserError(moetune::str(found->second.file, ": ", tensor.name, " has shape ",
                                   at::IntArrayRef(found->second.shape), "; config.json asks for ",
                                   at::IntArrayRef(tensor.shape)));
    }
    source->require_weight(tensor.name);
    if (tensor.shape.size() == 1 && found->second.bytes <= kCheapBytes) source->read(tensor.name, tensor.shape);
  }
  require_tied_head(*source, blueprint);
}

/// The adapter's configuration, and the header of its tensors; their numbers where they are few.
void check_adapter(const std::string& folder) {
  constexpr uint64_t kFewBytes = 64 << 20;
  read_peft_config(folder);
  const SafetensorsFile file = open_peft_weights(folder);
  for (const std::string& name : file.names()) {
    require_adapter_dtype(file.at(name));
    if (file.total_bytes() <= kFewBytes) require_finite(read_tensor(file, name), str(file.path(), ": ", name));
  }
}

/// What is wrong begins with its key.
void check_targets(const Recipe& recipe, const Blueprint& blueprint) {
  AdapterTargets targets = adapter_targets(recipe);
  linear_maps(blueprint, recipe.mtp.trains(), &targets);
  try {
    targets.require_all_matched();
  } catch (const UserError& error) {
    const std::string what = error.what();
    throw UserError(str(recipe.origin(what.substr(0, what.find(':'))), ": ", what));
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
    findings.attempt(recipe.origin("adapter.from"), [&] { check_adapter(*recipe.adapter->from); });
  }
  Blueprint blueprint;
  findings.attempt(recipe.origin("model.path"), [&] {
    blueprint = load_blueprint(recipe.model.path);
    if (recipe.model.weights == WeightOrigin::kPretrained) check_tensors(blueprint, recipe.model.path, with_mtp);
  });
  if (blueprint.num_layers() == 0)
    findings.raise_if_any();  // without a model there is nothing to hold the rest against
  if (with_mtp && blueprint.num_mtp_layers < 1) {
    findings.add(
        str(recipe.origin("mtp.loss_weight"),
            ": mtp.loss_weight: above 0, but the model has no MTP module (num_nextn_predict_layers); set it to 0"));
  }
  findings.attempt("", [&] { check_targets(recipe, blueprint); });
  findings.attempt("", [&] { balance_spec(recipe, blueprint); });
  findings.attempt("", [&] { require_correction_bias(recipe, blueprint); });
  findings.attempt("", [&] { require_router_gradient(recipe, blueprint); });
  findings.attempt("", [&] { require_trained_parts(recipe, blueprint); });
  MeshShape mesh;
  findings.attempt("", [&] { mesh = mesh_shape(recipe, blueprint, world_size); });
  findings.raise_if_any();

  const MemoryPlan plan = plan_memory(
      blueprint, recipe, mesh,
      {device_type(recipe), device_memory_bytes(device_type(recipe)), std::min(world_size, kUsualRanksPerHost)});
  return banner_line("recipe", recipe_path) + banner_of_model(recipe, blueprint, mesh, plan) +
         banner_line("memory", str("of each rank, for ", recipe.train.batch, " sequences of ", recipe.data.max_tokens,
                                   " tokens a step")) +
         memory_table(plan, /*with_formulas=*/true) + "\n";
}

}  // namespace moetune
