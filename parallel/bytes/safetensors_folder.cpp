#include <filesystem>
#include <nlohmann/json.hpp>
#include <system_error>
#include <utility>

#include "parallel/base/error.h"
#include "parallel/base/strict_json.h"
#include "parallel/base/text.h"
#include "parallel/bytes/safetensors.h"

namespace moetune {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;

constexpr const char* kSingleName = "model.safetensors";
constexpr const char* kIndexName = "model.safetensors.index.json";
constexpr std::string_view kSuffix = ".safetensors";
constexpr int kIndexDepth = 8;

bool exists(const std::string& folder, const char* name) {
  std::error_code ignored;
  return fs::symlink_status(fs::path(folder) / name, ignored).type() != fs::file_type::not_found;
}

fs::path resolve_links(const fs::path& path) {
  std::error_code error;
  fs::path resolved = fs::canonical(path, error);
  if (error) throw UserError(str(path.string(), ": cannot resolve the path: ", error.message()));
  return resolved;
}

bool lies_in(const fs::path& file, const fs::path& folder) {
  const fs::path relative = file.lexically_relative(folder);
  return !relative.empty() && *relative.begin() != ".." && *relative.begin() != ".";
}

// The path of a file of the folder, after every link in it has been seen to stay at home.
std::string path_inside(const std::string& folder, const std::string& name) {
  const fs::path path = fs::path(folder) / name;
  const fs::path home = resolve_links(folder);
  const fs::path target = resolve_links(path);
  const fs::path snapshots = home.parent_path();
  const bool in_cache = snapshots.filename() == "snapshots" && lies_in(target, snapshots.parent_path() / "blobs");
  if (!lies_in(target, home) && !in_cache) {
    throw UserError(str(path.string(), ": links to ", in_quotes(target.string()),
                        ", outside the model folder; put the file itself into the folder if you trust it"));
  }
  return path.string();
}

bool is_shard_name(std::string_view name) {
  return name.size() > kSuffix.size() && name.substr(name.size() - kSuffix.size()) == kSuffix &&
         name.find('/') == std::string_view::npos && name.find('\0') == std::string_view::npos;
}

}  // namespace

SafetensorsFolder::SafetensorsFolder(std::string folder) : folder_(std::move(folder)) {
  std::error_code ignored;
  if (!fs::is_directory(folder_, ignored)) throw UserError(str(folder_, ": not a folder; give the folder of a model"));
  const bool single = exists(folder_, kSingleName);
  const bool sharded = exists(folder_, kIndexName);
  if (single && sharded) {
    throw UserError(
        str(folder_, ": holds both ", kSingleName, " and ", kIndexName, "; remove the one that is out of date"));
  }
  if (!single && !sharded) {
    throw UserError(str(folder_, ": holds neither ", kSingleName, " nor ", kIndexName,
                        "; moetune reads safetensors and no other format (.bin and .pt files can run code)"));
  }
  if (sharded) {
    open_index();
    return;
  }
  const SafetensorsFile& file = open_shard(kSingleName);
  for (const std::string& name : file.names()) {
    const TensorInfo& info = file.at(name);
    tensors_.emplace(info.name, &info);
  }
}

const SafetensorsFile& SafetensorsFolder::open_shard(const std::string& name) {
  const std::string path = (fs::path(folder_) / name).string();
  const auto found = files_.find(path);
  if (found != files_.end()) return *found->second;
  return *files_.emplace(path, std::make_unique<SafetensorsFile>(path_inside(folder_, name))).first->second;
}

void SafetensorsFolder::open_index() {
  const std::string path = path_inside(folder_, kIndexName);
  const json index = parse_strict_json(read_text_file(path), path, kIndexDepth);
  if (!index.is_object() || !index.contains("weight_map") || !index["weight_map"].is_object() ||
      index["weight_map"].empty()) {
    throw UserError(str(path, ": needs an object \"weight_map\" from tensor names to file names"));
  }
  for (const auto& [name, shard] : index["weight_map"].items()) {
    if (!shard.is_string() || !is_shard_name(shard.get_ref<const std::string&>())) {
      throw UserError(
          str(path, ": weight_map sends tensor ", in_quotes(name), " to ",
              shard.is_string() ? in_quotes(shard.get_ref<const std::string&>()) : "something else than a string",
              "; allowed is the plain name of a file in the same folder that ends in .safetensors"));
    }
    const SafetensorsFile& file = open_shard(shard.get_ref<const std::string&>());
    const TensorInfo* info = file.find(name);
    if (info == nullptr) {
      throw UserError(str(path, ": weight_map sends tensor ", in_quotes(name), " to ", in_quotes(file.path()),
                          ", which does not hold it"));
    }
    tensors_.emplace(info->name, info);
  }
}

const TensorInfo* SafetensorsFolder::find(std::string_view name) const {
  const auto found = tensors_.find(name);
  return found == tensors_.end() ? nullptr : found->second;
}

const TensorInfo& SafetensorsFolder::at(std::string_view name) const {
  if (const TensorInfo* info = find(name)) return *info;
  throw UserError(
      str(folder_, ": no tensor ", in_quotes(name), "; nearest: ", list_in_quotes(nearest(name, names(), 3))));
}

std::vector<std::string> SafetensorsFolder::names() const {
  std::vector<std::string> names;
  for (const auto& [name, info] : tensors_) names.emplace_back(name);
  return names;
}

std::uint64_t SafetensorsFolder::total_bytes() const {
  std::uint64_t total = 0;
  for (const auto& [name, info] : tensors_) total += info->bytes;
  return total;
}

std::vector<const SafetensorsFile*> SafetensorsFolder::files() const {
  std::vector<const SafetensorsFile*> files;
  for (const auto& [path, file] : files_) files.push_back(file.get());
  return files;
}

const StringMap& SafetensorsFolder::metadata() const { return files_.begin()->second->metadata(); }

void SafetensorsFolder::read(const TensorInfo& info, std::uint64_t first_byte, std::uint64_t num_bytes,
                             void* destination) const {
  const auto file = files_.find(info.file);
  MT_CHECK(file != files_.end(), in_quotes(info.name), " is of ", info.file, ", which is no file of ", folder_);
  file->second->read(info, first_byte, num_bytes, destination);
}

}  // namespace moetune
