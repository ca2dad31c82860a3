// One expert layer's way down and up, as a picture: which collective of which group stands where, and what a rank sends
// in it. `moetune inspect --mesh RECIPE --svg FILE --picture layer`.
#pragma once

#include <string>

#include "trainer/plan/planned_mesh.h"

namespace moetune {

/// SVG. Bytes are those of docs/parallelism.md for the rows that the plan has; axes of one rank have no collectives and
/// none are drawn.
std::string layer_picture(const PlannedMesh& mesh);

}  // namespace moetune
