// The ranks that hold copies of a trained tensor: the one place that says so, for whoever sums, cuts, gathers or compares copies.
//
//   Communicator& ranks = replica_group(mesh, parameter.info().replicas);
//   ranks.reduce_scatter_sum(own, gradient);
//
// The groups of a kind do not overlap, and parts of a tensor over its group cover it once: a sum over the parts of all ranks counts
// every distinct number once.
#pragma once

#include "lora/parameter.h"
#include "parallel/mesh.h"

namespace moetune {

Communicator& replica_group(Mesh& mesh, Replicas replicas);
/// Its size on a mesh of this shape.
int64_t num_replicas(const MeshShape& shape, Replicas replicas);

}  // namespace moetune
