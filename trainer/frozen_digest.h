// The digest of the frozen weights of the whole model: the same at load, at every checkpoint and at the end, on every mesh.
//
//   std::string digest = frozen_digest(model, mesh);    // 16 hex digits; collective
//
// Sum over all tensors of (hash of position and name) * (8 bytes there) modulo 2^64, computed where the weights lie, so that hundreds
// of GB take no copy. It finds accidents (a stray write, a wrong shard); SHA-256 in manifests is against tampering.
#pragma once

#include <string>

#include "moe/model.h"
#include "parallel/mesh.h"

namespace moetune {

/// Replicated tensors count once, experts wherever they are. Empty text when nothing is frozen. Collective over the mesh.
std::string frozen_digest(Model& model, Mesh& mesh);
/// Digest of one tensor's bytes as if they began at byte `first_byte` of the tensor called `name`. The digests of a tensor's parts add up
/// to its own.
uint64_t tensor_digest(const std::string& name, const at::Tensor& tensor, int64_t first_byte);

}  // namespace moetune
