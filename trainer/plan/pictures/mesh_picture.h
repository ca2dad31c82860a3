// Who holds what, as a picture: `moetune inspect --mesh RECIPE --svg FILE`.
//
//   write_text_atomically("mesh.svg", mesh_picture(plan_mesh(recipe, 8, 4)));
#pragma once

#include <string>

#include "trainer/plan/planned_mesh.h"

namespace moetune {

/// Ranks as boxes in their hosts, each with its experts, heads, shards and frozen bytes on device and host; below, the
/// same boxes once a kind of group, those of one group in one colour. SVG. Of more than 64 ranks the first 64.
std::string mesh_picture(const PlannedMesh& mesh);

}  // namespace moetune
