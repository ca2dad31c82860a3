// Replicas agree: what several ranks hold alike is compared by digests, and a difference stops the run.
//
//   std::vector<HeldDigest> held = trained_digests(model);  // and frozen_digests(model, mesh) where those are due
//   require_equal_replicas(held, mesh, "step 50", "nothing was updated");  // collective: one gather, one wait
//
// A stale copy, a sum that missed a rank, a start of a rank's own or a flipped bit shows here, with its tensor and
// ranks, and not weeks later as a model that is a little worse.
#pragma once

#include <string>
#include <vector>

#include "moe/model.h"
#include "parallel/comm/mesh.h"
#include "trainer/state/digest.h"

namespace moetune {

/// Of the working copies of all that trains and of the routers' biases. The optimizer's update must not be pending for
/// some of the ranks alone: between a step's way up and its update nothing is. The same tensors in the same order on
/// every rank.
std::vector<HeldDigest> trained_digests(const Model& model);

/// Throws InternalError, the same on every rank of a stage, where ranks that hold copies have different ones: it names
/// `when`, the tensors, their group, the ranks (numbers in the job) and `outcome`. `held`: the same tensors in the same
/// order on every rank of a stage. Nothing to do on one rank. Collective over the stage, and over the first and the
/// last one of what both hold.
void require_equal_replicas(const std::vector<HeldDigest>& held, Mesh& mesh, const std::string& when,
                            const std::string& outcome);

}  // namespace moetune
