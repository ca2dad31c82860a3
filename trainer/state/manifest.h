// The manifest of a checkpoint folder, what makes the folder whole, and which of many is the newest whole one.
//
//   const fs::path newest = newest_whole(folder, damage_of);  // damaged newer ones are warned of and passed over
//   const Manifest manifest = read_manifest(newest);
//
// manifest.json is written last: a folder with one held all its files then, and their digests say whether it still
// does. Its last member, "digest", is the SHA-256 of the manifest's own text with the 64 digits of this digest as
// zeros. Format moetune-checkpoint-2, which has no such member, is still read.
#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <map>
#include <optional>
#include <string>
#include <vector>

namespace moetune {

/// A checkpoint whose held-out loss is among the least so far.
struct BestStep {
  int64_t step = 0;
  double loss = 0.0;
  std::string data;  ///< digest of what was evaluated: losses over other data are not compared
  bool operator==(const BestStep&) const = default;
};

struct Manifest {
  struct File {
    std::string sha256;
    int64_t bytes = 0;
  };
  int64_t step = 0;  ///< steps done
  int64_t optimizer_steps = 0;
  int64_t seed = 0;
  int64_t batch = 0;
  std::string mesh;  ///< of the job that wrote it, for reports
  std::string frozen_digest, data_digest;
  std::vector<BestStep> best;         ///< with checkpoint.keep_best: the least loss first
  std::map<std::string, File> files;  ///< by name, all but the manifest
};

/// Throws UserError naming file and member for what is no whole manifest, or one of another version's format.
Manifest read_manifest(const std::filesystem::path& checkpoint);
/// Atomic and durable.
void write_manifest(const std::filesystem::path& checkpoint, const Manifest& manifest);

/// Checks the manifest, that its step is the one of the folder's name, and of its files those numbered part, part +
/// parts, ...: throws UserError naming the first that is missing or differs.
void verify_checkpoint(const std::filesystem::path& checkpoint, int64_t part = 0, int64_t parts = 1);
/// What verify_checkpoint throws, as a text; empty where it throws nothing.
std::string damage_of(const std::filesystem::path& checkpoint, int64_t part = 0, int64_t parts = 1);
/// The text of a file that a manifest names, checked against it; at most 1 MiB.
std::string read_checkpoint_text(const std::filesystem::path& checkpoint, const Manifest& manifest,
                                 const std::string& name);

/// "step-00000100".
std::string checkpoint_name(int64_t step);
/// The step that a checkpoint's name says: digits behind "step-" and nothing else. None for any other name, such as
/// that of a copy ("step-best", "step-00000006-keep").
std::optional<int64_t> step_of_name(const std::filesystem::path& checkpoint);
/// Checkpoint folders in `folder` by their steps, oldest first, whatever their state.
std::vector<std::filesystem::path> list_checkpoints(const std::filesystem::path& folder);
/// The newest one of which `damage_of` says nothing (an empty text), after a warning, where this process `warns`, of
/// each newer one; empty path where there is no checkpoint at all. Throws UserError when all are damaged.
std::filesystem::path newest_whole(const std::filesystem::path& folder,
                                   const std::function<std::string(const std::filesystem::path&)>& damage_of,
                                   bool warns = true);

}  // namespace moetune
