// The digest of the frozen weights of the whole model: the same at load, at every checkpoint and at the end, on every mesh.
//
//   std::string digest = frozen_digest(model, mesh);    // 16 hex digits; collective
//
// Sum over all tensors of (hash of name and position) * (word there) modulo 2^64. Positions are those of the tensor as one rank would pack
// it whole, so that every rank digests the bytes it keeps, wherever a slab, a matrix or a stack of experts is cut, and the sums add up.
// Computed on the device, a few MiB at a time, so that hundreds of GB take seconds and no copy. It finds accidents (a stray write, a
// wrong shard); SHA-256 in manifests is against tampering.
#pragma once

#include <string>

#include "moe/model.h"
#include "parallel/mesh.h"

namespace moetune {

/// Of equal copies one counts. Empty text when nothing is frozen. Collective over the mesh.
std::string frozen_digest(Model& model, Mesh& mesh);
/// Digest of one tensor's bytes as if they began at byte `first_byte` of the tensor called `name`. The digests of a tensor's parts add up
/// to its own.
uint64_t tensor_digest(const std::string& name, const at::Tensor& tensor, int64_t first_byte);
/// Digest of what this rank keeps of a slab, on its store's device.
uint64_t slab_digest(const FrozenSlab& slab, int64_t first_expert);

}  // namespace moetune
