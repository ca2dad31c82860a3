#include "trainer/plan/weight_placement.h"

#include <algorithm>
#include <array>

#include "moe/inventory.h"
#include "moe/model.h"
#include "parallel/bytes/weight_store.h"
#include "trainer/plan/planned_step.h"

namespace moetune {
namespace {

/// A slab of the model, in the order of the way down.
struct PlannedSlab {
  LayerId layer;
  int lane = 0;  // 0 dense, 1 experts, as FrozenSlab has it
  int64_t bytes = 0;
  bool on_host = false;
};

class Placer {
 public:
  Placer(const Blueprint& blueprint, const Recipe& recipe, const MeshShape& mesh, const Machine& machine) {
    const int64_t per_host = machine.ranks_per_host > 0 ? machine.ranks_per_host : mesh.num_ranks();
    shards_ = {ShardGroups::dense_ranks(mesh, recipe.mesh.shard, per_host),
               ShardGroups::expert_ranks(mesh, recipe.mesh.shard, per_host)};
    const BaseFormat base = recipe.model.base;
    const int64_t local_experts = blueprint.router.experts / mesh.ep;
    const TensorParts parts{mesh.tp, mesh.expert_tp, base};
    auto add = [&](LayerId layer, const std::vector<LinearMap>& maps) {
      std::array<int64_t, 2> bytes{};
      for (const LinearMap& map : maps) {
        const int64_t units = map.units(local_experts);
        bytes[map.stack > 0] +=
            units * FrozenShape{held_format(map, base), units, map.outputs, map.inputs, parts.cut_of(map)}.unit_bytes();
      }
      for (const int lane : {0, 1}) {
        if (bytes[lane] > 0) slabs_.push_back({layer, lane, bytes[lane], false});
      }
    };
    for (const LayerId layer : blueprint.blocks(/*with_mtp=*/false)) add(layer, block_maps(blueprint, layer));
    if (recipe.mtp.trains()) {
      add(blueprint.turn(), {mtp_projection(blueprint)});
      add(blueprint.mtp(), block_maps(blueprint, blueprint.mtp()));
    }
    for (const SlabUse& use : slab_uses(blueprint, planned_step(blueprint, recipe, /*kept_layers=*/0))) {
      const auto used = std::find_if(slabs_.begin(), slabs_.end(), [&](const PlannedSlab& slab) {
        return slab.layer == use.layer && slab.lane == (use.kind == SlabKind::kExperts);
      });
      if (used != slabs_.end()) uses_.push_back(static_cast<int>(used - slabs_.begin()));
    }
  }

  /// The first `count` choices of what goes to the host: experts evenly spread, then everything dense.
  void offload(int64_t count) {
    const int64_t expert_slabs = num_experts();
    const int64_t chosen = std::min(count, expert_slabs);
    int64_t seen = 0;
    for (PlannedSlab& slab : slabs_) {
      if (slab.lane == 0) {
        slab.on_host = count > expert_slabs;
      } else {
        slab.on_host = (seen + 1) * chosen / expert_slabs > seen * chosen / expert_slabs;
        ++seen;
      }
    }
  }
  int64_t num_experts() const {
    return std::count_if(slabs_.begin(), slabs_.end(), [](const PlannedSlab& slab) { return slab.lane == 1; });
  }
  int64_t num_choices() const { return num_experts() + 1; }

  WeightPlacement placement() const {
    WeightPlacement result;
    result.dense_shards = shards_[0];
    result.expert_shards = shards_[1];
    std::array<int64_t, 2> largest{};
    for (const PlannedSlab& slab : slabs_) {
      const int64_t kept = WeightStore::shard_bytes(slab.bytes, shards_[slab.lane]);
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
    for (const int lane : {0, 1}) {
      std::vector<int> fetched;
      for (const int use : uses_) {
        if (slabs_[use].lane == lane && (slabs_[use].on_host || shards_[lane] > 1)) fetched.push_back(use);
      }
      for (const Fetch& fetch : fetches_of_round(fetched).fetches) {
        const PlannedSlab& slab = slabs_[fetch.slab];
        const int64_t kept = WeightStore::shard_bytes(slab.bytes, shards_[lane]);
        result.copied_bytes_per_step += slab.on_host ? kept : 0;
        result.gathered_bytes_per_step += (shards_[lane] - 1) * kept;
      }
    }
    return result;
  }

 private:
  std::array<int64_t, 2> shards_{};
  std::vector<PlannedSlab> slabs_;
  std::vector<int> uses_;  ///< of slabs in a step
};

}  // namespace

WeightPlacement place_weights(const Blueprint& blueprint, const Recipe& recipe, const MeshShape& mesh,
                              const Machine& machine, int64_t other_device_bytes) {
  if (!recipe.adapter) return {};  // what trains is not frozen
  Placer placer(blueprint, recipe, mesh, machine);
  const OffloadFrozen& wish = recipe.offload.frozen;
  const int64_t room = machine.device_memory_bytes / 100 * 95 - other_device_bytes;
  WeightPlacement best = placer.placement();
  for (int64_t count = 1; count <= placer.num_choices(); ++count) {
    const bool wanted =
        wish.kind == OffloadFrozen::Kind::kAll || wish.kind == OffloadFrozen::Kind::kBytes ||
        (wish.kind == OffloadFrozen::Kind::kAuto && machine.device_memory_bytes > 0 && best.device_bytes() > room);
    if (!wanted) break;
    placer.offload(count);
    const WeightPlacement more = placer.placement();
    if (wish.kind == OffloadFrozen::Kind::kBytes && more.host_bytes > wish.bytes) break;
    best = more;
  }
  return best;
}

}  // namespace moetune
