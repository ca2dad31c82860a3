// Where the frozen weights of a rank will lie, and what using them will move: a decision and its formulas, from sizes
// alone.
//
//   WeightPlacer placer(blueprint, recipe, mesh, machine);
//   WeightPlacement placement = placer.place(/*other_device_bytes=*/plan so far);
//   placement.host_layers;                 // their experts stream in from host memory
//
// Experts leave the device first: they are nearly all of the bytes, and a layer's are used once on each way. Layers on
// the host are spread evenly, so that every copy has the computing of the same number of resident layers to hide
// behind.
#pragma once

#include <array>
#include <cstdint>
#include <vector>

#include <c10/core/DeviceType.h>

#include "lora/frozen_slab.h"
#include "moe/blueprint.h"
#include "parallel/comm/mesh.h"
#include "parallel/comm/shard_groups.h"
#include "trainer/plan/pipeline_plan.h"
#include "trainer/recipe/recipe.h"

namespace moetune {

/// What a plan knows of the machines.
struct Machine {
  c10::DeviceType device = c10::DeviceType::CPU;
  int64_t device_memory_bytes = 0;  ///< of the smallest GPU; 0: not known, everything fits
  int64_t ranks_per_host = 0;       ///< 0: all ranks on one host
  int64_t host_memory_bytes = 0;    ///< for each rank; 0: not known, everything fits
  int64_t withheld_bytes = 0;       ///< of the device's memory, that `train.keep: auto` leaves beside its reserve
};

/// The frozen maps of one kind of a layer on a rank.
struct PlacedSlab {
  LayerId layer;
  SlabKind kind = SlabKind::kDense;
  int64_t kept_bytes = 0;  ///< of it that the rank keeps
  int64_t shards = 1;      ///< ranks among which it is sharded
  bool on_host = false;
  bool is_fetched() const { return on_host || shards > 1; }
};

/// Of one rank; bytes of slabs as the store rounds them.
struct WeightPlacement {
  std::vector<PlacedSlab> slabs;  ///< in the order of the way down, dense maps of a layer before its experts
  int64_t dense_shards = 1, expert_shards = 1;  ///< ranks among which slabs are sharded
  std::vector<LayerId> host_layers;             ///< layers whose experts lie in host memory, ascending
  bool dense_on_host = false;
  int64_t expert_slab_bytes = 0;              ///< the largest of any layer, before it is cut into shards
  int64_t dense_bytes = 0, expert_bytes = 0;  ///< kept on the device
  int64_t host_bytes = 0;                     ///< kept in host memory
  int64_t buffer_bytes = 0;                   ///< on the device, for what is on its way or in use
  int64_t copied_bytes_per_step = 0;          ///< host to device
  int64_t gathered_bytes_per_step = 0;        ///< received from other ranks
  int64_t device_bytes() const { return dense_bytes + expert_bytes + buffer_bytes; }
};

/// The choices that a rank of one mesh has, made once for many plans.
class WeightPlacer {
 public:
  /// `stage`: the rank's, of the recipe's pipeline.
  WeightPlacer(const Blueprint& blueprint, const Recipe& recipe, const MeshShape& mesh, const Machine& machine,
               const PipelinePlan& pipeline, int64_t stage);

  /// `other_device_bytes`: all of the plan but frozen weights. For `offload.frozen: auto` the fewest layers go to host
  /// memory that make the rest fit into 95 % of the device's; where not even all of them do, all of them. Nothing where
  /// all maps train themselves.
  WeightPlacement place(int64_t other_device_bytes);

 private:
  /// A slab of the model, in the order of the way down.
  struct Slab {
    LayerId layer;
    int lane = 0;  ///< 0 dense, 1 experts, as FrozenSlab has it
    int64_t bytes = 0;
    bool on_host = false;
  };

  /// The first `count` choices of what goes to the host: experts evenly spread, then everything dense.
  void offload(int64_t count);
  int64_t num_experts() const;
  /// What lies where.
  WeightPlacement held() const;
  /// What using it moves.
  void add_traffic(WeightPlacement& placement) const;

  OffloadFrozen wish_;
  int64_t device_memory_bytes_;
  std::array<int64_t, 2> shards_{};
  std::vector<Slab> slabs_;
  std::vector<int> uses_;  ///< of slabs in a step
};

}  // namespace moetune
