// The digest of the frozen weights of the whole model: the same at load, at every checkpoint and at the end, on every
// mesh.
//
//   const std::vector<HeldDigest> held = frozen_digests(model, mesh);   // what this rank holds, tensor by tensor
//   std::string digest = frozen_digest(held, mesh);                     // 16 hex digits; collective
//
// Positions within a tensor are those of the tensor as one rank would pack it whole, so that every rank digests the
// bytes it keeps, wherever a slab, a matrix or a stack of experts is cut, and the sums add up. Computed on the device:
// what lies in host memory goes there a piece at a time, at the rate of the copy engine.
#pragma once

#include <string>
#include <vector>

#include "moe/model.h"
#include "parallel/comm/mesh.h"
#include "trainer/state/digest.h"

namespace moetune {

/// Of the tensors that are held as they are: norms, routers, embedding, head. The same tensors in the same order on
/// every rank.
std::vector<HeldDigest> plain_digests(const Model& model, Mesh& mesh);
/// Of what this rank keeps of a slab, by weight and packed part. `first_expert`: of the units of a slab of experts.
/// Takes `piece_bytes` of the slab at a time, a multiple of 256: on a GPU so much that copying one hides the launches
/// for it, and little beside what a step needs.
std::vector<HeldDigest> slab_digests(const FrozenSlab& slab, int64_t first_expert,
                                     int64_t piece_bytes = int64_t{128} << 20);
/// Plain tensors and all slabs.
std::vector<HeldDigest> frozen_digests(Model& model, Mesh& mesh);
/// Of all that `held` counts on the ranks of the mesh; empty text when nothing is frozen. Collective.
std::string frozen_digest(const std::vector<HeldDigest>& held, Mesh& mesh);
/// Of frozen_digests(model, mesh). Collective.
std::string frozen_digest(Model& model, Mesh& mesh);

}  // namespace moetune
