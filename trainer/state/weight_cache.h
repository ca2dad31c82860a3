// Which folder of model.cache holds a model's packed weights, and what is said of it.
//
//   auto cache = open_weight_cache(recipe, blueprint, *source);       // null: the recipe asks for none
//   FrozenSlabs slabs(store, placement, cache.get());
//
//   model.cache/DeepSeek-V3-nf4-0f3a9c51d2e87b64/  digits: a digest of the sources, the format and the maps (cache_key)
//     about.json                     what it was made from
//     layer-003-experts.safetensors  lora/slab_cache.h
//     digests.json                   digest of the frozen weights of the runs that used it (frozen_digest.h)
//
// A file of the checkpoint counts by its name, size, time of last change and header, not by all of its bytes: reading
// those is what the cache saves.
#pragma once

#include <filesystem>
#include <memory>
#include <optional>
#include <string>

#include "lora/slab_cache.h"
#include "moe/blueprint.h"
#include "moe/weight_source.h"
#include "parallel/comm/communicator.h"
#include "trainer/recipe/recipe.h"

namespace moetune {

/// How a model's weights came into memory; of several ranks the most of any.
struct WeightLoad {
  int64_t read_bytes = 0;     ///< of the checkpoint
  int64_t cached_bytes = 0;   ///< packed, found in the cache
  int64_t written_bytes = 0;  ///< packed, written to the cache
  double seconds = 0.0;
};

/// Equal keys, equal packed weights: 16 hex digits of the source, the format of each map, and the packing's version.
std::string cache_key(const Recipe& recipe, const Blueprint& blueprint, const WeightSource& source);
/// The cache that the recipe asks for; null where it asks for none.
std::unique_ptr<SlabCache> open_weight_cache(const Recipe& recipe, const Blueprint& blueprint,
                                             const WeightSource& source);
/// Warns on rank 0 of what went wrong with the cache on any rank. Collective over the group.
void say_complaints(const SlabCache& cache, Communicator& world);
/// Compares the digest of the frozen weights with that of the first run over this cache with the same tensors in the
/// same dtypes, or records it as the first. Throws UserError where they differ. On one rank.
void compare_with_first_digest(const SlabCache& cache, const Recipe& recipe, const std::string& frozen_digest);
/// The caches in a folder, a few lines each: what they were made from and how far they are filled. Nothing where it
/// holds none.
std::optional<std::string> describe_weight_caches(const std::filesystem::path& folder);

}  // namespace moetune
