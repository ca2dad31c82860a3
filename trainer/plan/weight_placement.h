// Where the frozen weights of a rank will lie, and what using them will move: a decision and its formulas, from sizes
// alone.
//
//   WeightPlacement placement = place_weights(blueprint, recipe, mesh, machine, /*other_device_bytes=*/plan so far);
//   placement.host_layers;                 // their experts stream in from host memory
//
// Experts leave the device first: they are nearly all of the bytes, and a layer's are used once on each way. Layers on
// the host are spread evenly, so that every copy has the computing of the same number of resident layers to hide
// behind.
#pragma once

#include <cstdint>
#include <vector>

#include <c10/core/DeviceType.h>

#include "moe/blueprint.h"
#include "parallel/comm/mesh.h"
#include "parallel/comm/shard_groups.h"
#include "trainer/recipe/recipe.h"

namespace moetune {

/// What a plan knows of the machines.
struct Machine {
  c10::DeviceType device = c10::DeviceType::CPU;
  int64_t device_memory_bytes = 0;  ///< of the smallest GPU; 0: not known, everything fits
  int64_t ranks_per_host = 0;       ///< 0: all ranks on one host
};

/// Of one rank; bytes of slabs as the store rounds them.
struct WeightPlacement {
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

/// `other_device_bytes`: all of the plan but frozen weights. For `offload.frozen: auto` the fewest layers go to host
/// memory that make the rest fit into 95 % of the device's; where not even all of them do, all of them.
WeightPlacement place_weights(const Blueprint& blueprint, const Recipe& recipe, const MeshShape& mesh,
                              const Machine& machine, int64_t other_device_bytes);

}  // namespace moetune
