#include "trainer/state/weight_cache.h"

#include <algorithm>
#include <set>
#include <sstream>
#include <vector>

#include <nlohmann/json.hpp>

#include "moe/inventory.h"
#include "parallel/base/error.h"
#include "parallel/base/files.h"
#include "parallel/base/log.h"
#include "parallel/base/sha256.h"
#include "parallel/base/units.h"
#include "parallel/comm/gathered_text.h"
#include "trainer/recipe/recipe_meaning.h"

namespace moetune {
namespace {

namespace fs = std::filesystem;
using nlohmann::ordered_json;

constexpr const char* kFormat = "moetune-packed";
constexpr const char* kAbout = "about.json";
constexpr const char* kDigests = "digests.json";

std::vector<std::string> lines_of(const std::string& text) {
  std::istringstream in(text);
  std::vector<std::string> lines;
  for (std::string line; std::getline(in, line);) lines.push_back(line);
  return lines;
}

/// The maps that the run freezes, those of the MTP module too where there is one: a cache is the same with and without
/// it.
std::vector<LinearMap> frozen_maps(const Recipe& recipe, const Blueprint& blueprint, bool with_mtp) {
  std::vector<LinearMap> maps = linear_maps(blueprint, with_mtp, /*targets=*/nullptr, trained_parts(recipe));
  std::erase_if(maps, [](const LinearMap& map) { return !map.is_held_frozen(); });
  return maps;
}

/// The last name of a path that may end in a slash.
std::string folder_name(const std::string& path) {
  const fs::path clean = fs::path(path).lexically_normal();
  const std::string name = (clean.has_filename() ? clean : clean.parent_path()).filename().string();
  return name.empty() || name == "." ? "model" : name;
}

ordered_json about(const Recipe& recipe, const Blueprint& blueprint, const WeightSource& source) {
  ordered_json json = {{"format", kFormat},
                       {"packing", kPackingVersion},
                       {"model", recipe.model.path},
                       {"model_type", blueprint.model_type},
                       {"base", to_string(recipe.model.base)},
                       {"layers", blueprint.num_layers()}};
  int64_t matrices = 0;
  for (const LinearMap& map : frozen_maps(recipe, blueprint, /*with_mtp=*/false)) {
    matrices += map.units(blueprint.router.experts);
  }
  json["matrices"] = matrices;
  json["sources"] = lines_of(source.identity());
  return json;
}

void leave_in(const SlabCache& cache, const char* name, const ordered_json& json) {
  try {
    write_text_atomically((cache.folder() / name).string(),
                          json.dump(2, ' ', false, ordered_json::error_handler_t::replace) + "\n");
  } catch (const UserError&) {
    // Where nothing can be written, the slabs' files say so.
  }
}

constexpr uint64_t kMaxJsonBytes = 16 << 20;

std::string describe(const fs::path& folder, const ordered_json& about) try {
  const int64_t layers = about.value("layers", int64_t{0});
  int64_t trunk = 0, mtp = 0, bytes = 0;
  for (const auto& entry : fs::directory_iterator(folder)) {
    if (entry.path().extension() != ".safetensors") continue;
    const std::optional<SlabFileState> state = slab_file_state(entry.path());
    if (!state) continue;
    (state->layer < layers ? trunk : mtp) += state->matrices;
    bytes += static_cast<int64_t>(state->bytes_on_disk);
  }
  const int64_t all = about.value("matrices", int64_t{0});
  return str("packed weights ", folder.string(), "\n  of ", about.value("model", "?"), " (",
             about.value("model_type", "?"), ") in ", about.value("base", "?"), ", packing ", about.value("packing", 0),
             "\n  ", trunk == all ? "whole: " : "unfinished: ", trunk, " of ", all, " matrices, ", bytes_text(bytes),
             " on disk", mtp > 0 ? str("; ", mtp, " of the MTP module") : "", "\n");
} catch (const nlohmann::json::type_error& error) {
  throw UserError(str((folder / kAbout).string(), ": a member has another type than moetune gives it: ", error.what()));
}

/// What runs that were killed left of writing about.json and digests.json. Others may use the cache: a file of a
/// process of this number that lives here stays; one of another host finds its file gone, and writes it the next time.
void remove_leftovers(const fs::path& folder) {
  std::error_code error;
  for (const auto& entry : fs::directory_iterator(folder, error)) {
    const std::string name = entry.path().filename().string(), finished = name_of_leftover(name);
    if ((finished != kAbout && finished != kDigests) || !entry.is_regular_file(error)) continue;
    const std::string writer = name.substr(name.rfind('-') + 1);
    const bool lives = fs::exists(fs::path("/proc") / writer, error);
    if (!lives) fs::remove(entry.path(), error);
  }
}

std::optional<ordered_json> read_about(const fs::path& folder) {
  if (!fs::exists(fs::symlink_status(folder / kAbout))) return std::nullopt;
  const ordered_json json =
      ordered_json::parse(read_own_file((folder / kAbout).string(), kMaxJsonBytes), nullptr, false);
  if (!json.is_object() || json.value("format", ordered_json()) != kFormat) return std::nullopt;
  return json;
}

}  // namespace

std::string cache_key(const Recipe& recipe, const Blueprint& blueprint, const WeightSource& source) {
  const BaseFormat base = recipe.model.base;
  std::string text = str(kFormat, " ", kPackingVersion, "\n", source.identity());
  for (const LinearMap& map : frozen_maps(recipe, blueprint, blueprint.num_mtp_layers > 0)) {
    text += str(map.module(), " ", to_string(held_format(map, base)), " ", map.stack, " x ", map.outputs, " x ",
                map.inputs, "\n");
  }
  return sha256_of(text).substr(0, 16);
}

std::unique_ptr<SlabCache> open_weight_cache(const Recipe& recipe, const Blueprint& blueprint,
                                             const WeightSource& source) {
  if (!recipe.model.cache) return nullptr;
  const std::string name =
      str(folder_name(recipe.model.path), "-", to_string(recipe.model.base), "-", cache_key(recipe, blueprint, source));
  auto cache = std::make_unique<SlabCache>(fs::path(*recipe.model.cache) / name);
  remove_leftovers(cache->folder());
  if (!fs::exists(cache->folder() / kAbout)) leave_in(*cache, kAbout, about(recipe, blueprint, source));
  return cache;
}

void say_complaints(const SlabCache& cache, Communicator& world) {
  std::set<std::string> said;
  for (const std::string& complaints : gathered_text(world, cache.complaints())) {
    for (const std::string& line : lines_of(complaints)) {
      if (said.insert(line).second && world.rank() == 0) log_warn(str("model.cache: ", line));
    }
  }
}

void compare_with_first_digest(const SlabCache& cache, const Recipe& recipe, const std::string& frozen_digest) {
  const fs::path path = cache.folder() / kDigests;
  // Embedding, head and norms are in the digest, in the dtype that the run computes in, where they are frozen.
  const TrainedParts trained = trained_parts(recipe);
  const std::string run = str("compute ", to_string(recipe.model.compute), recipe.mtp.trains() ? ", MTP" : "",
                              trained.none() ? "" : ", trained: " + to_string(trained));
  ordered_json digests = fs::exists(fs::symlink_status(path))
                             ? ordered_json::parse(read_own_file(path.string(), kMaxJsonBytes), nullptr, false)
                             : ordered_json::object();
  if (!digests.is_object()) digests = ordered_json::object();
  if (digests.contains(run)) {
    if (digests[run] == frozen_digest) return;
    throw UserError(str(cache.folder().string(), ": the frozen weights have the digest ", frozen_digest,
                        ", with this cache they had ", digests[run].dump(),
                        " before: the checkpoint was changed in place and its time set back, or the cache is not its "
                        "own. Remove the folder and start again"));
  }
  digests[run] = frozen_digest;
  leave_in(cache, kDigests, digests);
}

std::optional<std::string> describe_weight_caches(const fs::path& folder) {
  if (const auto json = read_about(folder)) return describe(folder, *json);
  std::string text;
  std::vector<fs::path> inside;
  for (const auto& entry : fs::directory_iterator(folder)) {
    if (entry.is_directory()) inside.push_back(entry.path());
  }
  std::sort(inside.begin(), inside.end());
  for (const fs::path& path : inside) {
    if (const auto json = read_about(path)) text += describe(path, *json);
  }
  return text.empty() ? std::nullopt : std::optional(text);
}

}  // namespace moetune
