#include "trainer/exports/staged_folder.h"

#include <algorithm>
#include <system_error>

#include "parallel/base/error.h"
#include "parallel/base/files.h"
#include "parallel/base/text.h"

namespace moetune {
namespace {

namespace fs = std::filesystem;
using nlohmann::ordered_json;

constexpr const char* kFormat = "moetune-export-1";
constexpr const char* kStaging = ".unfinished";

/// Files of the earlier export in `folder`; none if there is none. UserError if it is of another kind.
std::vector<std::string> files_of_earlier(const fs::path& folder, const std::string& kind) {
  if (!fs::exists(folder / kExportFile)) return {};
  const ordered_json json = ordered_json::parse(read_text_file((folder / kExportFile).string()), nullptr, false);
  if (!json.is_object() || json.value("format", ordered_json()) != kFormat || !json.contains("files") ||
      !json.at("files").is_array()) {
    return {};
  }
  const ordered_json earlier = json.value("kind", ordered_json());
  if (earlier.is_string() && earlier != kind) {
    throw UserError(str(folder.string(), ": holds an export of another kind (",
                        printable_line(earlier.get<std::string>()), ", not ", kind,
                        "); nothing was changed. Name an empty or a new folder"));
  }
  std::vector<std::string> files = {kExportFile};
  for (const ordered_json& file : json.at("files")) {
    if (file.is_string() && fs::path(file.get<std::string>()).filename() == file.get<std::string>()) {
      files.push_back(file.get<std::string>());
    }
  }
  return files;
}

/// Files that make the rest loadable: they come last.
bool opens_the_rest(const std::string& file) { return fs::path(file).extension() == ".json"; }

}  // namespace

StagedFolder::StagedFolder(const fs::path& to, const std::string& kind)
    : to_(to), staging_(to / kStaging), kind_(kind) {
  std::error_code error;
  if (to_.empty()) throw UserError("--to is empty; it names the folder to write");
  if (fs::exists(to_) && !fs::is_directory(to_)) throw UserError(str(to_.string(), ": is no folder; --to names one"));
  if (!fs::exists(to_)) {
    fs::create_directories(to_, error);
    if (error) throw UserError(str(to_.string(), ": cannot create the folder: ", error.message()));
    created_ = true;
  }
  earlier_ = files_of_earlier(to_, kind);
  for (const auto& entry : fs::directory_iterator(to_)) {
    const std::string name = entry.path().filename().string();
    if (name == kStaging || std::find(earlier_.begin(), earlier_.end(), name) != earlier_.end()) continue;
    throw UserError(str(to_.string(), ": holds ", in_quotes(name),
                        ", which no earlier export wrote; nothing was changed. Name an empty or a new folder"));
  }
  fs::remove_all(staging_, error);
  fs::create_directory(staging_, error);
  if (error) throw UserError(str(staging_.string(), ": cannot create the folder: ", error.message()));
}

StagedFolder::~StagedFolder() {
  std::error_code ignored;
  fs::remove_all(staging_, ignored);
  if (created_ && fs::is_empty(to_, ignored)) fs::remove(to_, ignored);
}

void StagedFolder::commit(ordered_json about) {
  std::vector<std::string> files;
  for (const auto& entry : fs::directory_iterator(staging_)) files.push_back(entry.path().filename().string());
  std::sort(files.begin(), files.end());
  std::stable_partition(files.begin(), files.end(), [](const std::string& file) { return !opens_the_rest(file); });
  auto say = [&](bool complete, std::vector<std::string> listed) {
    std::sort(listed.begin(), listed.end());
    ordered_json json = {{"format", kFormat}, {"kind", kind_}};
    json.update(about);
    json["complete"] = complete;
    json["files"] = std::move(listed);
    write_text_atomically((to_ / kExportFile).string(),
                          json.dump(2, ' ', false, ordered_json::error_handler_t::replace) + "\n");
  };
  // From here to the end the folder may hold files of both: all of them are ours to replace.
  std::vector<std::string> both = files;
  for (const std::string& file : earlier_) {
    if (file != kExportFile && std::find(files.begin(), files.end(), file) == files.end()) both.push_back(file);
  }
  say(false, both);
  std::stable_partition(earlier_.begin(), earlier_.end(), opens_the_rest);
  for (const std::string& file : earlier_) {
    if (file != kExportFile) fs::remove(to_ / file);
  }
  for (const std::string& file : files) fs::rename(staging_ / file, to_ / file);
  say(true, files);
}

}  // namespace moetune
