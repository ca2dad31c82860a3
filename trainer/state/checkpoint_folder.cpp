#include "trainer/state/checkpoint_folder.h"

#include <set>

#include "parallel/base/error.h"
#include "parallel/base/files.h"
#include "parallel/base/log.h"
#include "parallel/base/text.h"
#include "trainer/state/manifest.h"

namespace moetune {
namespace {

namespace fs = std::filesystem;

constexpr std::string_view kSaving = ".saving-step-", kRemoving = ".removing-";

fs::file_type type_of(const fs::path& path) {
  std::error_code error;
  return fs::symlink_status(path, error).type();
}

/// Whether a checkpoint has files of this name.
bool is_of_checkpoint(const std::string& name) {
  static const std::set<std::string> kNames = {"manifest.json", "recipe.yaml", "config.json"};
  return kNames.count(name) > 0 || (name.starts_with("state-") && name.ends_with(".safetensors"));
}

/// The name of something in a checkpoint's folder that no run put there; empty where there is nothing.
std::string foreign_in(const fs::path& checkpoint) {
  std::error_code error;
  for (const auto& entry : fs::directory_iterator(checkpoint, error)) {
    const std::string name = entry.path().filename().string();
    if (type_of(entry.path()) == fs::file_type::directory) return name;
    if (!is_of_checkpoint(name) && !is_of_checkpoint(name_of_leftover(name))) return name;
  }
  return "";
}

bool is_ours(const fs::path& checkpoint) {
  return type_of(checkpoint) == fs::file_type::directory && foreign_in(checkpoint).empty();
}

void rename_to(const fs::path& from, const fs::path& to) {
  std::error_code error;
  fs::rename(from, to, error);
  if (error) throw UserError(str(from.string(), ": cannot rename to ", to.string(), ": ", error.message()));
}

/// Out of the way first, so that a name step-N never stands for a part of a checkpoint.
void take_away(const fs::path& checkpoint) {
  const fs::path doomed = checkpoint.parent_path() / str(kRemoving, checkpoint.filename().string());
  std::error_code error;
  fs::remove_all(doomed, error);
  rename_to(checkpoint, doomed);
  fs::remove_all(doomed, error);  // what stays goes at the next start
}

}  // namespace

fs::path unfinished_checkpoint(const fs::path& folder, int64_t step, const std::string& token) {
  const std::string name = checkpoint_name(step);
  return folder / str(".saving-", name, token.empty() ? "" : "-", token);
}

void put_checkpoint(const fs::path& unfinished, const fs::path& folder, int64_t step) {
  const fs::path final_path = folder / checkpoint_name(step);
  if (type_of(final_path) != fs::file_type::not_found) {
    if (is_ours(final_path)) {
      take_away(final_path);
    } else {
      int64_t number = 1;
      fs::path aside;
      do aside = str(final_path.string(), "-before-", number++);
      while (type_of(aside) != fs::file_type::not_found);
      rename_to(final_path, aside);
      log_warn(str(final_path.string(), " was there, with something that no run wrote; it is now ", aside.string()));
    }
  }
  rename_to(unfinished, final_path);
  fsync_folder_of(final_path.string());
}

void remove_checkpoint(const fs::path& checkpoint) {
  if (is_ours(checkpoint)) return take_away(checkpoint);
  static std::set<fs::path> said;  // once a run, not at each save
  if (type_of(checkpoint) == fs::file_type::directory && said.insert(checkpoint).second) {
    log_warn(
        str(checkpoint.string(), " is kept: it holds ", in_quotes(foreign_in(checkpoint)), ", which no run wrote"));
  }
}

void remove_leftovers_of_saves(const fs::path& folder) {
  std::error_code error;
  for (const auto& entry : fs::directory_iterator(folder, error)) {
    const std::string name = entry.path().filename().string();
    const fs::file_type type = type_of(entry.path());
    const bool folder_of_ours = name.starts_with(kSaving) || name.starts_with(str(kRemoving, "step-"));
    if (type == fs::file_type::directory ? folder_of_ours : is_of_checkpoint(name_of_leftover(name))) {
      fs::remove_all(entry.path(), error);
    }
  }
}

bool holds_checkpoint(const fs::path& folder) {
  std::error_code error;
  for (const auto& entry : fs::directory_iterator(folder, error)) {
    const std::string name = entry.path().filename().string();
    if (name.starts_with(kSaving) || name.starts_with(kRemoving)) continue;
    if (step_of_name(entry.path())) return true;
    std::error_code gone;
    if (entry.is_directory(gone) && type_of(entry.path() / "manifest.json") != fs::file_type::not_found) return true;
  }
  return false;
}

}  // namespace moetune
