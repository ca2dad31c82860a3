// A planned mesh as JSON: the facts of the pictures that scripts/draw makes of it (planned_mesh.py reads them).
#pragma once

#include <string>

#include "trainer/plan/planned_mesh.h"

namespace moetune {

/// Axes stand from the slowest to the fastest, so that a rank is its places along them, read as one number. Groups and
/// shared slabs are named by the axes along which their ranks differ. Weights and fetches are those of the fullest
/// stage: `fetches.a_step` says how many a step has of slabs of experts, `fetches.round` what the buffers do with as
/// many slabs and groups of documents as a picture has room for.
std::string mesh_json(const PlannedMesh& mesh);

}  // namespace moetune
