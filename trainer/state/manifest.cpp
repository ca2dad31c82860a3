#include "trainer/state/manifest.h"

#include <algorithm>
#include <cstdio>
#include <limits>

#include <nlohmann/json.hpp>

#include "parallel/base/error.h"
#include "parallel/base/files.h"
#include "parallel/base/log.h"
#include "parallel/base/sha256.h"
#include "parallel/base/strict_json.h"
#include "parallel/base/text.h"

namespace moetune {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;
using nlohmann::ordered_json;

constexpr const char* kFormat = "moetune-checkpoint-3";
constexpr const char* kFormatWithoutDigest = "moetune-checkpoint-2";
constexpr const char* kFormats = "moetune-checkpoint-";
constexpr std::string_view kStep = "step-";
constexpr uint64_t kMaxManifestBytes = 64 << 20;  // some hundred thousand ranks
constexpr uint64_t kMaxTextBytes = 1 << 20;
constexpr int kDepth = 3;
const std::string kNoDigest(64, '0');

fs::path manifest_of(const fs::path& checkpoint) { return checkpoint / "manifest.json"; }

/// One object of a manifest; what is asked of it is there and of the right kind, or a UserError names it.
class Members {
 public:
  Members(std::string where, const json& object) : where_(std::move(where)), object_(object) {
    if (!object.is_object()) fail("is ", object, "an object");
  }
  int64_t whole_number(const char* key, int64_t least = std::numeric_limits<int64_t>::min()) const {
    const json& value = at(key);
    const bool fits = value.is_number_integer() &&
                      (!value.is_number_unsigned() ||
                       value.get<uint64_t>() <= static_cast<uint64_t>(std::numeric_limits<int64_t>::max())) &&
                      value.get<int64_t>() >= least;
    if (!fits) fail(str(in_quotes(key), " is "), value, least == 0 ? "a whole number from 0 on" : "a whole number");
    return value.get<int64_t>();
  }
  double number(const char* key) const {
    if (!at(key).is_number()) fail(str(in_quotes(key), " is "), at(key), "a number");
    return at(key).get<double>();
  }
  std::string text(const char* key) const {
    if (!at(key).is_string()) fail(str(in_quotes(key), " is "), at(key), "a text");
    return at(key).get<std::string>();
  }
  std::string digest(const char* key) const {
    const std::string digits = text(key);
    const bool hex = digits.size() == 64 && digits.find_first_not_of("0123456789abcdef") == std::string::npos;
    if (!hex) fail(str(in_quotes(key), " is "), at(key), "64 hexadecimal digits");
    return digits;
  }
  const json& at(const char* key) const {
    const auto found = object_.find(key);
    if (found == object_.end()) throw UserError(str(where_, ": is not whole: has no ", in_quotes(key)));
    return *found;
  }
  bool has(const char* key) const { return object_.contains(key); }

 private:
  [[noreturn]] void fail(const std::string& what, const json& value, const char* wanted) const {
    const std::string shown = value.dump(-1, ' ', true, json::error_handler_t::replace);
    throw UserError(str(where_, ": is not whole: ", what, shown.size() > 60 ? shown.substr(0, 60) + "..." : shown,
                        ", not ", wanted));
  }

  std::string where_;
  const json& object_;
};

/// Whether the text has the digest that it says.
bool has_digest(std::string text, const std::string& digest) {
  const size_t at = text.rfind(digest);
  if (at == std::string::npos) return false;
  return sha256_of(text.replace(at, digest.size(), kNoDigest)) == digest;
}

void check_format(const std::string& path, const Members& members, const std::string& text) {
  const std::string format = members.text("format");
  if (format == kFormat) {
    if (!has_digest(text, members.digest("digest"))) {
      throw UserError(str(path, ": differs from the digest that it holds of itself"));
    }
  } else if (format == kFormatWithoutDigest) {
    if (members.has("digest")) throw UserError(str(path, ": is of format ", in_quotes(format), ", but has a digest"));
  } else if (format.rfind(kFormats, 0) == 0) {
    throw UserError(str(path, ": is of format ", in_quotes(format),
                        ", which another version of moetune wrote; this one reads ", kFormatWithoutDigest, " and ",
                        kFormat, ". Export the adapter with that version and go on from it with adapter.from"));
  } else {
    throw UserError(str(path, ": is not a whole manifest: its format is ", in_quotes(format), ", not ", kFormat));
  }
}

void check_file(const fs::path& checkpoint, const std::string& name, const Manifest::File& entry) {
  const std::string path = (checkpoint / name).string();
  std::error_code error;
  if (fs::symlink_status(path, error).type() == fs::file_type::not_found) {
    throw UserError(str(path, ": is missing, manifest.json names it"));
  }
  const InputFile file(path, Links::kRefuse);
  if (file.size() != static_cast<uint64_t>(entry.bytes)) {
    throw UserError(str(path, ": has ", file.size(), " bytes, manifest.json says ", entry.bytes));
  }
  const std::string digest = sha256_of_file(file);
  if (digest != entry.sha256) {
    throw UserError(str(path, ": has SHA-256 ", digest, ", manifest.json says ", entry.sha256));
  }
}

/// The last name of a path, which may end in a slash or be ".".
std::string last_name(const fs::path& path) {
  const fs::path clean = fs::absolute(path).lexically_normal();
  return (clean.has_filename() ? clean : clean.parent_path()).filename().string();
}

}  // namespace

Manifest read_manifest(const fs::path& checkpoint) {
  const std::string path = manifest_of(checkpoint).string();
  const std::string text = read_own_file(path, kMaxManifestBytes);
  const json parsed = parse_strict_json(text, path, kDepth);
  const Members members(path, parsed);
  check_format(path, members, text);
  Manifest manifest;
  manifest.step = members.whole_number("step", 0);
  manifest.optimizer_steps = members.whole_number("optimizer_steps", 0);
  manifest.seed = members.whole_number("seed");
  manifest.batch = members.whole_number("batch");
  manifest.mesh = members.text("mesh");
  manifest.frozen_digest = members.text("frozen_digest");
  manifest.data_digest = members.text("data_digest");
  if (members.has("best")) {
    // Versions that kept one wrote it as an object.
    const json& best = members.at("best");
    for (const json& value : best.is_array() ? best : json::array({best})) {
      const Members one(str(path, ": best"), value);
      manifest.best.push_back({one.whole_number("step", 0), one.number("loss"), one.text("data")});
    }
  }
  const json& files = members.at("files");
  if (!files.is_object()) throw UserError(str(path, ": is not whole: \"files\" is no object"));
  for (const auto& [name, value] : files.items()) {
    if (name.empty() || name == "." || name == ".." || name.find('/') != std::string::npos) {
      throw UserError(str(path, ": files: ", in_quotes(name), " is no name of a file in the checkpoint"));
    }
    const Members entry(str(path, ": files: ", in_quotes(name)), value);
    manifest.files[name] = {entry.digest("sha256"), entry.whole_number("bytes", 0)};
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
  for (const BestStep& best : manifest.best) {
    json["best"].push_back({{"step", best.step}, {"loss", best.loss}, {"data", best.data}});
  }
  json["files"] = ordered_json::object();
  for (const auto& [name, file] : manifest.files) {
    json["files"][name] = {{"sha256", file.sha256}, {"bytes", file.bytes}};
  }
  json["digest"] = kNoDigest;
  std::string text = json.dump(2) + "\n";
  const size_t at = text.rfind(kNoDigest);
  text.replace(at, kNoDigest.size(), sha256_of(text));
  write_text_atomically(manifest_of(checkpoint).string(), text);
}

void verify_checkpoint(const fs::path& checkpoint, int64_t part, int64_t parts) {
  std::error_code error;
  if (fs::is_symlink(checkpoint, error)) {
    throw UserError(str(checkpoint.string(), ": is a symbolic link, which is not followed here; move the folder here"));
  }
  if (fs::symlink_status(manifest_of(checkpoint), error).type() == fs::file_type::not_found) {
    throw UserError(str(checkpoint.string(), ": has no manifest.json"));
  }
  const Manifest manifest = read_manifest(checkpoint);
  const std::optional<int64_t> named = step_of_name(checkpoint);
  if (named && *named != manifest.step) {
    throw UserError(str(manifest_of(checkpoint).string(), ": says step ", manifest.step, ", the folder's name ", *named,
                        "; give the folder its name back, or a name that is none of a checkpoint"));
  }
  if (manifest.files.count("recipe.yaml") == 0) {
    throw UserError(str(manifest_of(checkpoint).string(), ": is not whole: files has no \"recipe.yaml\""));
  }
  int64_t number = 0;
  for (const auto& [name, file] : manifest.files) {
    if (number++ % parts == part) check_file(checkpoint, name, file);
  }
}

std::string damage_of(const fs::path& checkpoint, int64_t part, int64_t parts) {
  try {
    verify_checkpoint(checkpoint, part, parts);
    return "";
  } catch (const UserError& error) {
    return error.what();
  } catch (const fs::filesystem_error& error) {
    return error.what();
  }
}

std::string read_checkpoint_text(const fs::path& checkpoint, const Manifest& manifest, const std::string& name) {
  const std::string path = (checkpoint / name).string();
  const auto found = manifest.files.find(name);
  if (found == manifest.files.end()) throw UserError(str(path, ": manifest.json does not name it"));
  const std::string text = read_own_file(path, kMaxTextBytes);
  if (sha256_of(text) != found->second.sha256)
    throw UserError(str(path, ": differs from its SHA-256 in manifest.json"));
  return text;
}

std::string checkpoint_name(int64_t step) {
  char text[32];
  std::snprintf(text, sizeof text, "step-%08ld", static_cast<long>(step));
  return text;
}

std::optional<int64_t> step_of_name(const fs::path& checkpoint) {
  const std::string name = last_name(checkpoint);
  constexpr size_t kMostDigits = 18;  // of an int64_t, whatever they are
  if (name.rfind(kStep, 0) != 0 || name.size() == kStep.size() || name.size() > kStep.size() + kMostDigits) return {};
  int64_t step = 0;
  for (const char c : name.substr(kStep.size())) {
    if (c < '0' || c > '9') return std::nullopt;
    step = 10 * step + (c - '0');
  }
  return step;
}

std::vector<fs::path> list_checkpoints(const fs::path& folder) {
  std::vector<std::pair<int64_t, fs::path>> found;
  std::error_code error;
  if (!fs::is_directory(folder, error)) return {};
  for (fs::directory_iterator entry(folder, error), end; !error && entry != end; entry.increment(error)) {
    std::error_code gone;
    const std::optional<int64_t> step = step_of_name(entry->path());
    if (step && entry->is_directory(gone)) found.emplace_back(*step, entry->path());
  }
  if (error) throw UserError(str(folder.string(), ": cannot be listed: ", error.message()));
  std::sort(found.begin(), found.end());
  std::vector<fs::path> paths;
  for (auto& [step, path] : found) paths.push_back(std::move(path));
  return paths;
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
