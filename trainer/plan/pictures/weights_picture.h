// How frozen weights that are not whole on the device get there: a slab, its shards, the buffers; and when, along the
// sweep. `moetune inspect --mesh RECIPE --svg FILE --picture weights`.
#pragma once

#include <string>

#include "trainer/plan/planned_mesh.h"

namespace moetune {

/// SVG. The experts' slab of one layer, the ranks that share it, and a step of two buffers
/// (parallel/bytes/weight_store.h). Throws UserError where nothing is frozen.
std::string weights_picture(const PlannedMesh& mesh);

}  // namespace moetune
