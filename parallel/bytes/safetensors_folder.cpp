#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <optional>
#include <regex>
#include <set>
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

// Whether whoever can put a link into the folder is the user that runs, or root.
bool is_own(const fs::path& folder, struct stat& status) {
  return ::stat(folder.c_str(), &status) == 0 && (status.st_uid == ::geteuid() || status.st_uid == 0);
}

// The path of a file of the folder, after every link in it has been seen to stay at home where that is asked.
std::string path_inside(const std::string& folder, const std::string& name) {
  const fs::path path = fs::path(folder) / name;
  const fs::path home = resolve_links(folder);
  const fs::path target = resolve_links(path);
  const fs::path snapshots = home.parent_path();
  const bool in_cache = snapshots.filename() == "snapshots" && lies_in(target, snapshots.parent_path() / "blobs");
  struct stat status = {};
  if (!lies_in(target, home) && !in_cache && !is_own(home, status)) {
    throw UserError(str(path.string(), ": links to ", in_quotes(target.string()),
                        ", outside the model folder, which belongs to another user (", status.st_uid,
                        "); make a folder of your own with links to the files if you trust them"));
  }
  return path.string();
}

/// N and M of a file named model-N-of-M.safetensors.
struct ShardNumber {
  std::int64_t number = 0, count = 0;
};
std::optional<ShardNumber> shard_number(const std::string& name) {
  static const std::regex kName("model-([0-9]{1,9})-of-([0-9]{1,9})\\.safetensors");
  std::smatch match;
  if (name.size() > 64 || !std::regex_match(name, match, kName)) return std::nullopt;
  return ShardNumber{std::stoll(match[1]), std::stoll(match[2])};
}

/// Names of the folder's entries that end in one of `suffixes`, sorted.
std::vector<std::string> names_ending_in(const std::string& folder, const std::vector<std::string_view>& suffixes) {
  std::vector<std::string> names;
  std::error_code error;
  for (fs::directory_iterator entry(folder, error), end; !error && entry != end; entry.increment(error)) {
    const std::string name = entry->path().filename().string();
    for (const std::string_view suffix : suffixes) {
      if (name.ends_with(suffix)) names.push_back(name);
    }
  }
  if (error) throw UserError(str(folder, ": cannot list the folder: ", error.message()));
  std::sort(names.begin(), names.end());
  return names;
}

std::string some_in_quotes(std::vector<std::string> names) {
  constexpr std::size_t kShown = 3;
  const std::size_t more = names.size() - std::min(names.size(), kShown);
  names.resize(names.size() - more);
  return list_in_quotes(names) + (more > 0 ? str(" and ", more, " more") : "");
}

/// Why a folder without index, single file and shards has no weights, and what mends it.
[[noreturn]] void fail_without_weights(const std::string& folder) {
  const std::string neither = str(folder, ": holds neither ", kSingleName, " nor ", kIndexName);
  const std::vector<std::string> others = names_ending_in(folder, {kSuffix});
  if (!others.empty()) {
    throw UserError(str(neither, " nor files model-00001-of-N.safetensors, but ", some_in_quotes(others),
                        "; rename a single file to ", kSingleName, ", or download the index of several"));
  }
  const std::vector<std::string> pickles = names_ending_in(folder, {".bin", ".pt", ".pth", ".ckpt"});
  if (!pickles.empty()) {
    throw UserError(str(neither, ", but ", some_in_quotes(pickles),
                        "; moetune reads safetensors and no other format (.bin and .pt files can run code). Take the "
                        "model's safetensors, or convert it where you trust it: transformers' "
                        "from_pretrained(FOLDER).save_pretrained(OTHER)"));
  }
  throw UserError(str(neither,
                      "; moetune reads safetensors and no other format. Finish the download, or use "
                      "model.weights: random"));
}

bool is_shard_name(std::string_view name) {
  return name.size() > kSuffix.size() && name.substr(name.size() - kSuffix.size()) == kSuffix &&
         name.find('/') == std::string_view::npos && name.find('\0') == std::string_view::npos;
}

}  // namespace

SafetensorsFolder::SafetensorsFolder(std::string folder) : folder_(std::move(folder)) {
  std::error_code ignored;
  if (!fs::is_directory(folder_, ignored)) {
    throw UserError(str(folder_, ": not a folder; give the folder of a model",
                        fs::exists(folder_, ignored) ? ", not a file in it" : ""));
  }
  const bool single = exists(folder_, kSingleName);
  const bool sharded = exists(folder_, kIndexName);
  if (single && sharded) {
    throw UserError(
        str(folder_, ": holds both ", kSingleName, " and ", kIndexName, "; remove the one that is out of date"));
  }
  if (sharded) {
    open_index();
    return;
  }
  std::vector<std::string> shards;
  for (const std::string& name : names_ending_in(folder_, {kSuffix})) {
    if (shard_number(name)) shards.push_back(name);
  }
  if (single && !shards.empty()) {
    throw UserError(
        str(folder_, ": holds both ", kSingleName, " and ", some_in_quotes(shards), "; remove what is out of date"));
  }
  if (single) {
    take_all(open_shard(kSingleName));
  } else if (!shards.empty()) {
    open_unindexed(shards);
  } else {
    fail_without_weights(folder_);
  }
}

void SafetensorsFolder::take_all(const SafetensorsFile& file) {
  for (const std::string& name : file.names()) {
    const TensorInfo& info = file.at(name);
    const auto [place, is_new] = tensors_.emplace(info.name, &info);
    if (!is_new) {
      throw UserError(str(file.path(), ": holds tensor ", in_quotes(name), ", which ", place->second->file,
                          " holds too; without ", kIndexName, " nothing says which one counts"));
    }
  }
}

void SafetensorsFolder::open_unindexed(const std::vector<std::string>& shards) {
  const std::int64_t count = shard_number(shards.front())->count;
  std::set<std::int64_t> present;
  for (const std::string& name : shards) {
    const ShardNumber shard = *shard_number(name);
    if (shard.count != count || shard.number < 1 || shard.number > count || !present.insert(shard.number).second) {
      throw UserError(str(folder_, ": ", in_quotes(shards.front()), " and ", in_quotes(name),
                          " are not of one set of shards; remove those that are out of date, or put ", kIndexName,
                          " beside them"));
    }
  }
  if (static_cast<std::int64_t>(present.size()) != count) {
    std::vector<std::int64_t> missing;
    constexpr std::size_t kShown = 8;
    for (std::int64_t number = 1; number <= count && missing.size() < kShown; ++number) {
      if (present.count(number) == 0) missing.push_back(number);
    }
    throw UserError(str(folder_, ": holds ", present.size(), " of the ", count, " files model-N-of-", count,
                        ".safetensors and no ", kIndexName, "; missing are N = ", number_list(missing, kShown),
                        missing.size() < static_cast<std::size_t>(count) - present.size() ? ", ..." : "",
                        ". Finish the download"));
  }
  for (const std::string& name : shards) take_all(open_shard(name));
}

const SafetensorsFile& SafetensorsFolder::open_shard(const std::string& name) {
  const std::string path = (fs::path(folder_) / name).string();
  const auto found = files_.find(path);
  if (found != files_.end()) return *found->second;
  return *files_.emplace(path, std::make_unique<SafetensorsFile>(path_inside(folder_, name))).first->second;
}

void SafetensorsFolder::open_index() {
  const std::string path = path_inside(folder_, kIndexName);
  const json index = read_json_object(path, kIndexDepth);
  if (!index.contains("weight_map") || !index["weight_map"].is_object() || index["weight_map"].empty()) {
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
