#include "trainer/state/manifest.h"

#include <algorithm>

#include <nlohmann/json.hpp>

#include "parallel/base/error.h"
#include "parallel/base/files.h"
#include "parallel/base/log.h"
#include "parallel/base/sha256.h"
#include "parallel/base/text.h"

namespace moetune {
namespace {

namespace fs = std::filesystem;
using nlohmann::ordered_json;

constexpr const char* kFormat = "moetune-checkpoint-2";
constexpr const char* kFormats = "moetune-checkpoint-";

fs::path manifest_of(const fs::path& checkpoint) { return checkpoint / "manifest.json"; }

}  // namespace

Manifest read_manifest(const fs::path& checkpoint) {
  const std::string path = manifest_of(checkpoint).string();
  const ordered_json json = ordered_json::parse(read_text_file(path), nullptr, false);
  Manifest manifest;
  try {
    const std::string format = json.at("format").get<std::string>();
    if (format != kFormat && format.rfind(kFormats, 0) == 0) {
      throw UserError(str(path, ": is of format ", in_quotes(format),
                          ", which another version of moetune wrote; this one reads ", kFormat,
                          ". Export the adapter with that version and go on from it with adapter.from"));
    }
    if (format != kFormat) throw UserError(str(path, ": is not a whole manifest of format ", kFormat));
    json.at("step").get_to(manifest.step);
    json.at("optimizer_steps").get_to(manifest.optimizer_steps);
    json.at("seed").get_to(manifest.seed);
    json.at("batch").get_to(manifest.batch);
    json.at("mesh").get_to(manifest.mesh);
    json.at("frozen_digest").get_to(manifest.frozen_digest);
    json.at("data_digest").get_to(manifest.data_digest);
    for (const auto& [name, entry] : json.at("files").items()) {
      manifest.files[name] = {entry.at("sha256").get<std::string>(), entry.at("bytes").get<int64_t>()};
    }
  } catch (const nlohmann::json::exception&) {
    throw UserError(str(path, ": is not a whole manifest of format ", kFormat));
  }
  return manifest;
}

void write_manifest(const fs::path& checkpoint, const Manifest& manifest) {
  ordered_json json = {{"format", kFormat},
                       {"step", manifest.step},
                       {"optimizer_steps", manifest.optimizer_steps},
                       {"seed", manifest.seed},
                       {"batch", manifest.batch},
                       {"mesh", manifest.mesh},
                       {"frozen_digest", manifest.frozen_digest},
                       {"data_digest", manifest.data_digest}};
  for (const auto& [name, file] : manifest.files) {
    json["files"][name] = {{"sha256", file.sha256}, {"bytes", file.bytes}};
  }
  write_text_atomically(manifest_of(checkpoint).string(), json.dump(2) + "\n");
}

void verify_checkpoint(const fs::path& checkpoint, int64_t part, int64_t parts) {
  int64_t number = 0;
  for (const auto& [name, file] : read_manifest(checkpoint).files) {
    if (number++ % parts != part) continue;
    const fs::path path = checkpoint / name;
    if (!fs::exists(path)) throw UserError(str(path.string(), ": is missing, manifest.json names it"));
    const std::string digest = sha256_of_file(path.string());
    if (digest != file.sha256) {
      throw UserError(str(path.string(), ": has SHA-256 ", digest, ", manifest.json says ", file.sha256));
    }
  }
}

std::string damage_of(const fs::path& checkpoint, int64_t part, int64_t parts) {
  try {
    verify_checkpoint(checkpoint, part, parts);
    return "";
  } catch (const UserError& error) {
    return error.what();
  }
}

std::vector<fs::path> list_checkpoints(const fs::path& folder) {
  std::vector<fs::path> found;
  if (!fs::is_directory(folder)) return found;
  for (const auto& entry : fs::directory_iterator(folder)) {
    if (entry.is_directory() && entry.path().filename().string().rfind("step-", 0) == 0) found.push_back(entry.path());
  }
  std::sort(found.begin(), found.end());
  return found;
}

fs::path newest_whole(const fs::path& folder, const std::function<std::string(const fs::path&)>& damage_of,
                      bool warns) {
  std::string damage;
  std::vector<fs::path> all = list_checkpoints(folder);
  if (all.empty()) return {};
  for (; !all.empty(); all.pop_back()) {
    damage = damage_of(all.back());
    if (damage.empty()) return all.back();
    if (warns) log_warn(str("checkpoint ", all.back().filename().string(), " is damaged and passed over: ", damage));
  }
  throw UserError(str(folder.string(), ": no checkpoint is whole; the last one tried: ", damage));
}

}  // namespace moetune
