#include "trainer/plan/model_shelf.h"

#include <algorithm>
#include <filesystem>

#include <nlohmann/json.hpp>

#include "moe/families/family.h"
#include "parallel/base/error.h"
#include "parallel/base/program_files.h"
#include "parallel/base/strict_json.h"
#include "parallel/base/text.h"

namespace moetune {
namespace {

namespace fs = std::filesystem;

fs::path shelf() { return program_files().recipes / "models"; }

Blueprint blueprint_of_file(const fs::path& file) {
  return parse_blueprint(read_json_object(file.string()), file.string());
}

bool is_file(const fs::path& path) {
  std::error_code ignored;
  return fs::is_regular_file(path, ignored);
}

}  // namespace

std::vector<std::string> shipped_models() {
  std::vector<std::string> names;
  for (const auto& entry : fs::directory_iterator(shelf())) {
    if (entry.path().extension() == ".json") names.push_back(entry.path().stem().string());
  }
  std::sort(names.begin(), names.end());
  return names;
}

Blueprint load_planned_model(const std::string& name_or_path) {
  const std::vector<std::string> names = shipped_models();
  if (std::find(names.begin(), names.end(), lower_case(name_or_path)) != names.end()) {
    return blueprint_of_file(shelf() / (lower_case(name_or_path) + ".json"));
  }
  if (is_file(name_or_path)) return blueprint_of_file(name_or_path);
  if (is_file(fs::path(name_or_path) / "config.json")) return load_blueprint(name_or_path);
  std::string known;
  for (const std::string& name : names) known += (known.empty() ? "" : ", ") + name;
  throw UserError(str("--model ", name_or_path, ": is neither a folder with config.json nor one of ", known));
}

Blueprint load_recipe_model(const std::string& path, std::string* said) {
  if (is_file(fs::path(path) / "config.json")) return load_blueprint(path);
  fs::path folder(path);
  if (!folder.has_filename()) folder = folder.parent_path();
  const std::string name = lower_case(folder.filename().string());
  const std::vector<std::string> names = shipped_models();
  // "Mixtral-8x7B-Instruct-v0.1": the longest name that it begins with.
  std::string best;
  for (const std::string& known : names) {
    if (name.starts_with(known) && known.size() > best.size()) best = known;
  }
  if (best.empty() && name.starts_with("deepseek-r1")) best = "deepseek-v3";  // the same model, trained further
  if (best.empty()) return load_blueprint(path);                              // which says what is missing
  if (said != nullptr) *said = str(path, " has no config.json: planned from the published one of ", best);
  return blueprint_of_file(shelf() / (best + ".json"));
}

}  // namespace moetune
