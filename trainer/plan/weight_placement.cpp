#include "trainer/plan/weight_placement.h"

#include <algorithm>
#include <array>

#include "moe/inventory.h"
#include "moe/model.h"
#include "parallel/bytes/weight_store.h"
#include "trainer/plan/planned_step.h"
#include "trainer/recipe/recipe_meaning.h"

namespace moetune {
WeightPlacer::WeightPlacer(const Blueprint& blueprint, const Recipe& recipe, const MeshShape& mesh,
                           const Machine& machine, const PipelinePlan& pipeline, int64_t stage)
    : wish_(recipe.offload.frozen), device_memory_bytes_(machine.device_memory_bytes) {
  const int64_t per_host = machine.ranks_per_host > 0 ? machine.ranks_per_host : mesh.num_ranks();
  shards_ = {ShardGroups::dense_ranks(mesh, recipe.mesh.shard, per_host),
             ShardGroups::expert_ranks(mesh, recipe.mesh.shard, per_host)};
  const BaseFormat base = recipe.model.base;
  const int64_t local_experts = blueprint.router.experts / mesh.ep;
  const TensorParts parts{mesh.tp, mesh.expert_tp, base};
  auto add = [&](LayerId layer, const std::vector<LinearMap>& maps) {
    std::array<int64_t, 2> bytes{};
    for (const LinearMap& map : maps) {
      if (!map.is_held_frozen()) continue;
      const int64_t units = map.units(local_experts);
      bytes[map.stack > 0] +=
          units * FrozenShape{held_format(map, base), units, map.outputs, map.inputs, parts.cut_of(map)}.unit_bytes();
    }
    for (const int lane : {0, 1}) {
      if (bytes[lane] > 0) slabs_.push_back({layer, lane, bytes[lane], false});
    }
  };
  const PipelinePlace place = pipeline.place(stage);
  const TrainedParts trained = trained_parts(recipe);
  const auto maps_of = [&](LayerId layer) { return block_maps(blueprint, layer, /*targets=*/nullptr, trained); };
  for (const LayerId layer : place.layers->blocks(blueprint, /*with_mtp=*/false)) add(layer, maps_of(layer));
  if (recipe.mtp.trains() && place.layers->is_last()) {
    add(blueprint.turn(), {mtp_projection(blueprint, trained)});
    add(blueprint.mtp(), maps_of(blueprint.mtp()));
  }
  for (const SlabUse& use :
       slab_uses(blueprint, planned_step(blueprint, recipe, /*kept=*/{}, place, pipeline.groups))) {
    const auto used = std::find_if(slabs_.begin(), slabs_.end(), [&](const Slab& slab) {
      return slab.layer == use.layer && slab.lane == (use.kind == SlabKind::kExperts);
    });
    if (used != slabs_.end()) uses_.push_back(static_cast<int>(used - slabs_.begin()));
  }
}

void WeightPlacer::offload(int64_t count) {
  const int64_t expert_slabs = num_experts();
  const int64_t chosen = std::min(count, expert_slabs);
  int64_t seen = 0;
  for (Slab& slab : slabs_) {
    if (slab.lane == 0) {
      slab.on_host = count > expert_slabs;
    } else {
      slab.on_host = (seen + 1) * chosen / expert_slabs > seen * chosen / expert_slabs;
      ++seen;
    }
  }
}
int64_t WeightPlacer::num_experts() const {
  return std::count_if(slabs_.begin(), slabs_.end(), [](const Slab& slab) { return slab.lane == 1; });
}

WeightPlacement WeightPlacer::held() const {
  WeightPlacement result;
  result.dense_shards = shards_[0];
  result.expert_shards = shards_[1];
  std::array<int64_t, WeightStore::kLanes> largest{};
  for (const Slab& slab : slabs_) {
    const int64_t kept = WeightStore::shard_bytes(slab.bytes, shards_[slab.lane]);
    result.slabs.push_back(
        {slab.layer, slab.lane == 1 ? SlabKind::kExperts : SlabKind::kDense, kept, shards_[slab.lane], slab.on_host});
    (slab.on_host ? result.host_bytes : slab.lane == 1 ? result.expert_bytes : result.dense_bytes) += kept;
    if (slab.lane == 1) result.expert_slab_bytes = std::max(result.expert_slab_bytes, slab.bytes);
    if (slab.on_host && slab.lane == 1) result.host_layers.push_back(slab.layer);
    if (slab.on_host && slab.lane == 0) result.dense_on_host = true;
    if (slab.on_host || shards_[slab.lane] > 1) {
      largest[slab.lane] = std::max(largest[slab.lane], kept * shards_[slab.lane]);
    }
  }
  result.buffer_bytes = WeightStore::buffer_bytes(largest);
  std::sort(result.host_layers.begin(), result.host_layers.end());
  return result;
}

void WeightPlacer::add_traffic(WeightPlacement& result) const {
  for (const int lane : {0, 1}) {
    std::vector<int> fetched;
    for (const int use : uses_) {
      if (slabs_[use].lane == lane && (slabs_[use].on_host || shards_[lane] > 1)) fetched.push_back(use);
    }
    for (const Fetch& fetch : fetches_of_round(fetched, Rounds::kFollow).fetches) {
      const Slab& slab = slabs_[fetch.slab];
      const int64_t kept = WeightStore::shard_bytes(slab.bytes, shards_[lane]);
      result.copied_bytes_per_step += slab.on_host ? kept : 0;
      result.gathered_bytes_per_step += (shards_[lane] - 1) * kept;
    }
  }
}

WeightPlacement WeightPlacer::place(int64_t other_device_bytes) {
  if (slabs_.empty()) return {};
  const int64_t room = device_memory_bytes_ / 100 * 95 - other_device_bytes;
  int64_t chosen = 0;
  offload(chosen);
  WeightPlacement best = held();
  for (int64_t count = 1; count <= num_experts() + 1; ++count) {
    const bool wanted =
        wish_.kind == OffloadFrozen::Kind::kAll || wish_.kind == OffloadFrozen::Kind::kBytes ||
        (wish_.kind == OffloadFrozen::Kind::kAuto && device_memory_bytes_ > 0 && best.device_bytes() > room);
    if (!wanted) break;
    offload(count);
    WeightPlacement more = held();
    if (wish_.kind == OffloadFrozen::Kind::kBytes && more.host_bytes > wish_.bytes) break;
    best = std::move(more);
    chosen = count;
  }
  offload(chosen);
  add_traffic(best);
  return best;
}

}  // namespace moetune
