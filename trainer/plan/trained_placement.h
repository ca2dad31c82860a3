// Where the trained weights of a rank will lie, and what using them will move, from sizes alone: the plan of
// trainer/update/trained_slabs.h.
//
//   TrainedPlacement placed = place_trained(numbers, recipe, mesh, machine, program);
//   placed.device_bytes + placed.buffer_bytes;
#pragma once

#include <map>
#include <utility>
#include <vector>

#include "trainer/plan/weight_placement.h"
#include "trainer/sweep/step_program.h"
#include "trainer/update/trained_slabs.h"

namespace moetune {

/// The weights of a layer that live on the same ranks.
struct PlacedTrained {
  LayerId layer;
  Replicas replicas = Replicas::kEverywhere;
  int64_t kept_bytes = 0;  ///< of its slab that the rank keeps
  int64_t shards = 1;      ///< ranks among which it is sharded
  bool on_host = false;
  bool is_fetched() const { return on_host || shards > 1; }
  int lane() const { return TrainedSlabs::lane(replicas); }
};

struct TrainedPlacement {
  std::vector<PlacedTrained> slabs;  ///< in the order of the way down, those of a layer in that of their lanes
  int64_t device_bytes = 0;          ///< kept on the device
  int64_t new_numbers = 0;           ///< of the rank's shards, beside the masters until all ranks have them
  int64_t longest_written = 0;       ///< numbers of the longest of its shards that are written where they lie, there
  int64_t host_bytes = 0;            ///< kept in host memory
  int64_t buffer_bytes = 0;          ///< on the device, for what is on its way or in use
  int64_t copied_bytes_per_step = 0, gathered_bytes_per_step = 0;
  /// Places in `slabs` of those that a use of the layer needs fetched.
  std::vector<int> uses(LayerId layer) const;
};

/// Numbers of a flat vector (trainer/update/partition.h) that a rank holds of a layer's weights.
using WeightNumbers = std::map<std::pair<LayerId, Replicas>, int64_t>;
TrainedPlacement place_trained(const WeightNumbers& numbers, const Recipe& recipe, const MeshShape& mesh,
                               const Machine& machine, const StepProgram& program);

}  // namespace moetune
