// The ranks that hold copies of a trained tensor: the one place that says so, for whoever sums, cuts, gathers or
// compares copies.
//
//   Communicator& ranks = replica_group(mesh, parameter.info().replicas);
//   ranks.reduce_scatter_sum(own, gradient);          // rows and parts of all ranks: the whole gradient
//
// Router weights, norms and maps that the tensor axis does not cut see each rank's own rows alone, and the whole halves
// of cut maps' adapters its own part: their gradients are summed over the axis too. The groups of a kind do not
// overlap, and parts of a tensor over its group cover it once: a sum over the parts of all ranks counts every distinct
// number once.
#pragma once

#include "lora/adapters/parameter.h"
#include "parallel/comm/mesh.h"
#include "parallel/comm/shard_groups.h"

namespace moetune {

/// Ranks with a copy each, whose gradients add up.
Communicator& replica_group(Mesh& mesh, Replicas replicas);
/// Their number on a mesh of this shape.
int64_t num_replicas(const MeshShape& shape, Replicas replicas);
/// Those of them that share working copies between uses; null: each keeps its own.
Communicator* shard_group(const ShardGroups& shards, Replicas replicas);
/// Their number, where a host runs `ranks_per_host` ranks.
int64_t num_shards(const MeshShape& shape, Replicas replicas, ShardScope scope, int64_t ranks_per_host);
/// How far apart they are: neighbours where they are all ranks of the innermost axes.
int64_t stride_of_shards(const MeshShape& shape, Replicas replicas);

}  // namespace moetune
