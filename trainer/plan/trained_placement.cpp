#include "trainer/plan/trained_placement.h"

#include <algorithm>
#include <array>

#include "parallel/bytes/weight_store.h"
#include "trainer/recipe/recipe_meaning.h"
#include "trainer/update/replica_groups.h"

namespace moetune {
std::vector<int> TrainedPlacement::uses(LayerId layer) const {
  std::vector<int> found;
  for (size_t i = 0; i < slabs.size(); ++i) {
    if (slabs[i].layer == layer && slabs[i].is_fetched()) found.push_back(static_cast<int>(i));
  }
  return found;
}

TrainedPlacement place_trained(const WeightNumbers& numbers, const Recipe& recipe, const MeshShape& mesh,
                               const Machine& machine, const StepProgram& program) {
  const at::ScalarType compute = scalar_type(recipe.model.compute);
  const auto size = static_cast<int64_t>(c10::elementSize(compute));
  const int64_t per_host = machine.ranks_per_host > 0 ? machine.ranks_per_host : mesh.num_ranks();
  TrainedPlacement placed;
  std::array<int64_t, WeightStore::kLanes> largest{};
  for (const auto& [place, count] : numbers) {
    PlacedTrained slab{place.first, place.second};
    const int64_t replicas = num_replicas(mesh, slab.replicas),
                  shard = Partition::shard_numbers(count, replicas, Role::kWeight), flat = shard * replicas;
    if (slab.layer.is_block()) {
      slab.on_host = recipe.offload.trained == OffloadTier::kHost;
      slab.shards = num_shards(mesh, slab.replicas, recipe.mesh.shard, per_host);
    }
    slab.kept_bytes = WeightStore::shard_bytes(flat * size, slab.shards);
    (slab.on_host ? placed.host_bytes : placed.device_bytes) += slab.kept_bytes;
    if (slab.is_fetched()) {
      largest[slab.lane()] = std::max(largest[slab.lane()], slab.kept_bytes * slab.shards);
    }
    const bool own_place = !slab.is_fetched() || slab.shards == replicas;
    if (!own_place) placed.new_numbers += shard;
    else if (!slab.on_host) placed.longest_written = std::max(placed.longest_written, shard);
    placed.slabs.push_back(slab);
  }
  placed.buffer_bytes = WeightStore::buffer_bytes(largest);
  std::array<std::vector<int>, WeightStore::kLanes> uses;
  for (const LayerId layer : block_uses(program)) {
    for (const int slab : placed.uses(layer)) uses[placed.slabs[slab].lane()].push_back(slab);
  }
  for (const std::vector<int>& lane : uses) {
    for (const Fetch& fetch : fetches_of_round(lane, Rounds::kAlone).fetches) {
      const PlacedTrained& slab = placed.slabs[fetch.slab];
      placed.copied_bytes_per_step += slab.on_host ? slab.kept_bytes : 0;
      placed.gathered_bytes_per_step += (slab.shards - 1) * slab.kept_bytes;
    }
  }
  return placed;
}

}  // namespace moetune
