// A folder that is filled whole or not at all: files are written to a place inside it that no reader looks at, then
// moved.
//
//   StagedFolder out("exports/v3", "adapter");  // refuses a folder that holds anything but an earlier export
//   write_tensors((out.path() / "adapter_model.safetensors").string(), ...);
//   out.commit({{"step", 100}});
//
// An export carries moetune_export.json: what it was made from, and its files. By it the next export knows what it may
// replace, so that no command line, however mistaken, writes over a model. Killed while files are moved, the folder
// lacks config.json or adapter_config.json, which come last: no reader takes it for whole, and the next export replaces
// it.
#pragma once

#include <filesystem>
#include <string>
#include <vector>

#include <nlohmann/json.hpp>

namespace moetune {

inline constexpr const char* kExportFile = "moetune_export.json";

class StagedFolder {
 public:
  /// Creates `to` if need be. UserError if it is no folder, or holds files that no earlier export of this kind put
  /// there: an adapter would be a small thing in the place of a merged model.
  StagedFolder(const std::filesystem::path& to, const std::string& kind);
  /// Removes what was written unless committed, and `to` too if it was created for it.
  ~StagedFolder();
  StagedFolder(const StagedFolder&) = delete;
  StagedFolder& operator=(const StagedFolder&) = delete;

  /// Where to write: plain files, no folders.
  const std::filesystem::path& path() const { return staging_; }
  /// Replaces the earlier export. `about` goes into moetune_export.json, in front of the list of files. Call once,
  /// last.
  void commit(nlohmann::ordered_json about);

 private:
  std::filesystem::path to_, staging_;
  std::string kind_;
  std::vector<std::string> earlier_;  // files of the earlier export
  bool created_ = false;
};

}  // namespace moetune
