#include "trainer/exports/evaluate.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <memory>

#include <nlohmann/json.hpp>

#include "parallel/base/error.h"
#include "parallel/base/files.h"
#include "parallel/base/log.h"
#include "trainer/assemble.h"
#include "trainer/data/dataset.h"
#include "trainer/exports/earlier_output.h"
#include "trainer/exports/saved_run.h"
#include "trainer/recipe/recipe_load.h"
#include "trainer/recipe/recipe_values.h"
#include "trainer/run/evaluation.h"
#include "trainer/state/checkpoint.h"
#include "trainer/state/manifest.h"

namespace moetune {
namespace {

namespace fs = std::filesystem;

constexpr std::array kKeys = {"document", "loss", "target_tokens"};  // of a line

/// A model's own folder, neither a run's nor a checkpoint's.
bool is_model(const fs::path& path) {
  return fs::exists(path / "config.json") && !fs::exists(path / "manifest.json") && !fs::exists(path / "checkpoints");
}

bool gives(const std::vector<std::string>& overrides, const std::string& start) {
  return std::any_of(overrides.begin(), overrides.end(),
                     [&](const std::string& given) { return given.starts_with(start); });
}

/// Whether the file is of an earlier evaluation, maybe one without documents.
bool holds_losses(const std::string& path) {
  std::ifstream file(path);
  if (file.peek() == std::ifstream::traits_type::eof()) return true;
  std::string line;
  std::getline(file, line);
  const auto first = nlohmann::json::parse(line, nullptr, /*allow_exceptions=*/false);
  return first.is_object() && first.size() == kKeys.size() &&
         std::all_of(kKeys.begin(), kKeys.end(), [&](const char* key) { return first.contains(key); });
}

void write_documents(const std::string& to, const std::vector<DocumentLoss>& by_document) {
  std::string lines;
  for (size_t i = 0; i < by_document.size(); ++i) {
    if (by_document[i].targets == 0) continue;
    lines +=
        nlohmann::ordered_json{{kKeys[0], i}, {kKeys[1], by_document[i].loss()}, {kKeys[2], by_document[i].targets}}
            .dump() +
        "\n";
  }
  write_text_atomically(to, lines);
}

/// What `path` is evaluated with. A run, which is then `saved`: its recipe, on one rank without its mesh. A model's
/// folder: weights in bf16, no adapter. `overrides` (key.sub=value) go before both.
Recipe recipe_of_evaluation(const std::string& path, const SavedRun* saved, const std::string& data,
                            const std::vector<std::string>& overrides, int64_t world_size) {
  Recipe recipe;
  if (saved == nullptr) {
    const std::string text = str("run: {dir: unused}\nmodel: {path: ", quote_yaml(path),
                                 ", base: bf16}\ndata: {train: ", quote_yaml(data), "}\ntrain: {steps: 1, batch: 8}\n");
    recipe = parse_recipe(text, path, overrides);
    if (recipe.adapter) recipe.adapter->targets.clear();
  } else {
    const fs::path& checkpoint = saved->checkpoint();
    recipe = parse_recipe(read_checkpoint_text(checkpoint, saved->state().manifest(), "recipe.yaml"),
                          (checkpoint / "recipe.yaml").string(), overrides);
    if (recipe.adapter) recipe.adapter->from.reset();
    if (world_size == 1 && !gives(overrides, "mesh.")) recipe.mesh = MeshRecipe();
  }
  // The training run's choice of a part of its held-out data is not the user's of this one.
  if (!gives(overrides, "eval.max_sequences=")) recipe.eval.max_sequences = 0;
  return recipe;
}

}  // namespace

int evaluate_model(const std::string& path, const std::string& data, const std::vector<std::string>& overrides,
                   const std::string& to, Launch& launch) {
  if (!to.empty()) {
    require_replaceable(to, [&] { return holds_losses(to); }, "--to " + to, "losses of an earlier evaluation");
  }
  // Opening a run reads all of its checkpoint, and a job that goes on may save another meanwhile.
  const std::unique_ptr<SavedRun> saved = is_model(path) ? nullptr : std::make_unique<SavedRun>(path);
  const Recipe recipe = recipe_of_evaluation(path, saved.get(), data, overrides, launch.world_size());
  Assembly run = assemble(recipe, launch);
  std::string what = str(path, ", no adapter");
  if (saved != nullptr) {
    load_weights(saved->state(), *run.model, run.trained.get());
    what = str(saved->checkpoint().string(), recipe.adapter ? ", with its adapter" : "");
  }
  const Documents documents =
      load_documents(recipe, "", DataFiles::of(data), run.blueprint, launch, PreparationTools::from_environment());
  Batches batches(documents,
                  BatchOptions{0, recipe.train.batch, recipe.data.max_tokens, recipe.data.packing, false, 1});
  Sweep sweep(*run.model, run.sweep_options);
  std::vector<DocumentLoss> by_document(static_cast<size_t>(documents.size()));
  const Evaluation held_out = evaluate(sweep, run, batches, recipe.eval.max_sequences, &by_document);
  if (launch.rank() != 0) return 0;
  if (!to.empty()) write_documents(to, by_document);
  std::printf("%s, on weights in %s, compute %s\n", what.c_str(), to_string(recipe.model.base).c_str(),
              to_string(recipe.model.compute).c_str());
  std::printf("loss %.6f  target_tokens %lld  perplexity %.4f  documents %lld\n", held_out.loss(),
              static_cast<long long>(held_out.targets), std::exp(held_out.loss()),
              static_cast<long long>(documents.size()));
  if (!to.empty()) log_info(str(to, ": the loss of each document"));
  return 0;
}

}  // namespace moetune
