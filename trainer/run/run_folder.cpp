#include "trainer/run/run_folder.h"

#include <algorithm>
#include <array>
#include <set>

#include "parallel/base/error.h"
#include "parallel/base/files.h"
#include "parallel/base/log.h"
#include "parallel/base/sha256.h"
#include "parallel/base/text.h"
#include "trainer/recipe/recipe_load.h"
#include "trainer/recipe/recipe_meaning.h"
#include "trainer/run/metrics/log_file.h"
#include "trainer/run/step_trace.h"
#include "trainer/state/checkpoint_folder.h"
#include "trainer/state/config_changes.h"
#include "trainer/state/manifest.h"

namespace moetune {
namespace {

namespace fs = std::filesystem;

constexpr const char* kOwn = "# Written by moetune: change a copy, not this file. SHA-256 of the lines below: ";
constexpr uint64_t kMaxRecipeBytes = 4 << 20;
/// What a run writes into its folder, beside folders.
constexpr std::array kFiles = {"log.jsonl", "recipe.yaml", "experts.json", "receipt.json"};

fs::path made_folder(const Recipe& recipe) {
  const fs::path folder = recipe.run.dir;
  std::error_code error;
  fs::create_directories(folder, error);
  if (error || !fs::is_directory(folder, error)) {
    throw UserError(str(recipe.origin("run.dir"), ": run.dir: ", folder.string(), ": cannot make the folder: ",
                        error ? error.message() : "a file has this name", "; name another one"));
  }
  return folder;
}

fs::file_type type_of(const fs::path& path) {
  std::error_code error;
  return fs::symlink_status(path, error).type();
}
bool is_there(const fs::path& path) { return type_of(path) != fs::file_type::not_found; }

/// Traces in a folder, parts of which a killed run left included.
std::vector<fs::path> traces_in(const fs::path& folder) {
  std::vector<fs::path> found;
  std::error_code error;
  for (const auto& entry : fs::directory_iterator(folder, error)) {
    const std::string name = entry.path().filename().string();
    if (is_trace_name(name) || is_trace_name(name_of_leftover(name))) found.push_back(entry.path());
  }
  return found;
}

/// Whether the text is a recipe.yaml as write_recipe left it.
bool is_own_recipe(const std::string& text) {
  const size_t digest_at = std::string(kOwn).size(), end = text.find('\n');
  return text.rfind(kOwn, 0) == 0 && end == digest_at + 64 &&
         text.substr(digest_at, 64) == sha256_of(std::string_view(text).substr(end + 1));
}

}  // namespace

RunFolder::RunFolder(const Recipe& recipe, bool resume, bool traces)
    : recipe_(recipe), traces_(traces), path_(made_folder(recipe)), lock_(path_) {
  refuse_foreign_files();
  if (!resume) refuse_second_run();
  if (resume) require_fits_newest();
  remove_leftovers();
}

void RunFolder::refuse_second_run() const {
  const bool checkpoints_there = holds_checkpoint(checkpoints());
  if (!is_there(path_ / "log.jsonl") && !checkpoints_there) return;
  throw UserError(str(recipe_.origin("run.dir"), ": run.dir: ", path_.string(), " holds a run already",
                      checkpoints_there ? " (checkpoints/ is not empty)" : "",
                      "; add --resume to go on with it, or name another folder"));
}

void RunFolder::refuse_foreign_files() const {
  auto refuse = [&](const char* name, const char* why) {
    throw UserError(str(recipe_.origin("run.dir"), ": run.dir: ", (path_ / name).string(), ": ", why,
                        ", and the run would replace it; nothing was changed. Move it, or name another folder"));
  };
  std::vector<const char*> folders = {"checkpoints", "tensorboard"};
  if (traces_) folders.push_back("profile");
  for (const char* name : folders) {
    std::error_code error;
    if (is_there(path_ / name) && !fs::is_directory(path_ / name, error)) refuse(name, "is no folder");
  }
  for (const char* name : kFiles) {
    const fs::file_type type = type_of(path_ / name);
    if (type == fs::file_type::symlink) refuse(name, "is a symbolic link");
    if (type != fs::file_type::regular && type != fs::file_type::not_found) refuse(name, "is no regular file");
  }
  if (is_there(path_ / "log.jsonl") && !is_own_log((path_ / "log.jsonl").string())) {
    refuse("log.jsonl", "is no log of a run");
  }
  if (choice_by_load(recipe_) && is_there(path_ / "experts.json") && !is_there(path_ / "log.jsonl")) {
    refuse("experts.json", "is of no run that is here");
  }
  if (traces_ && !is_there(path_ / "log.jsonl") && !traces_in(path_ / "profile").empty()) {
    refuse("profile", "holds traces of no run that is here");
  }
  if (!is_there(path_ / "recipe.yaml")) return;
  std::error_code error;
  const bool small = fs::file_size(path_ / "recipe.yaml", error) <= kMaxRecipeBytes;
  const std::string text = small ? read_own_file((path_ / "recipe.yaml").string(), kMaxRecipeBytes) : "";
  if (small && is_own_recipe(text)) return;
  for (const fs::path& checkpoint : list_checkpoints(checkpoints())) {  // a run of a version that left no digest
    try {
      if (small && text == read_own_file((checkpoint / "recipe.yaml").string(), kMaxRecipeBytes)) return;
    } catch (const UserError&) {
      continue;  // damaged, which is said elsewhere
    }
  }
  refuse("recipe.yaml", "was not written by a run, or was changed since");
}

void RunFolder::require_fits_newest() {
  std::vector<fs::path> all = list_checkpoints(checkpoints());
  for (; !all.empty(); all.pop_back()) {
    try {
      read_checkpoint_text(all.back(), read_manifest(all.back()), "recipe.yaml");
    } catch (const UserError&) {
      continue;  // damaged: one before it is used
    }
    return require_fits(all.back());
  }
}

void RunFolder::require_fits(const fs::path& checkpoint) {
  const Manifest manifest = read_manifest(checkpoint);
  const Recipe then =
      parse_recipe(read_checkpoint_text(checkpoint, manifest, "recipe.yaml"), (checkpoint / "recipe.yaml").string());
  changes_.clear();
  std::string refused;
  for (RecipeChange& change : recipe_changes(then, recipe_)) {
    if (change.refused()) {
      refused +=
          str("\n  ", change.key, ": ", change.then, " then, ", change.now, " now (", recipe_.origin(change.key), ")");
    } else {
      changes_.push_back(std::move(change));
    }
  }
  if (manifest.files.count("config.json") > 0) {
    const std::string path = (fs::path(recipe_.model.path) / "config.json").string();
    for (const ConfigChange& change :
         config_changes(read_checkpoint_text(checkpoint, manifest, "config.json"), read_text_file(path), path)) {
      refused += str("\n  ", path, ": ", change.key, ": ", change.then, " then, ", change.now, " now");
    }
  }
  if (refused.empty()) return;
  throw UserError(str("--resume: ", checkpoint.string(), " was made with other values, which a run must keep:", refused,
                      "\nnothing was changed. Take them back; or start a new run in another folder, which may go on "
                      "from this one's exported adapter (adapter.from)"));
}

void RunFolder::write_recipe(const std::string& text) const {
  write_text_atomically((path_ / "recipe.yaml").string(), str(kOwn, sha256_of(text), "\n", text));
}

void RunFolder::make_room_for_traces() const {
  const fs::path folder = path_ / "profile";
  std::error_code error;
  fs::create_directory(folder, error);
  if (error) throw UserError(str(folder.string(), ": cannot make the folder: ", error.message()));
  for (const fs::path& trace : traces_in(folder)) fs::remove(trace, error);
}

void RunFolder::remove_leftovers() const {
  std::set<std::string> ours(kFiles.begin(), kFiles.end());
  ours.insert("manifest.json");
  std::error_code error;
  for (const auto& entry : fs::directory_iterator(path_, error)) {
    const std::string name = entry.path().filename().string();
    const bool own_lock = name.find(token()) != std::string::npos;
    const bool left = ours.count(name_of_leftover(name)) > 0 || (is_leftover_of_lock(name) && !own_lock);
    if (left && type_of(entry.path()) == fs::file_type::regular) fs::remove(entry.path(), error);
  }
  remove_leftovers_of_saves(checkpoints());
}

}  // namespace moetune
