// The ranks that hold copies of a trained tensor: the one place that says so, for whoever sums, cuts, gathers or compares copies.
//
//   replica_group(mesh, parameter.info().replicas).all_reduce_sum(gradient);    // rows and parts of all ranks: the whole gradient
//   parts_group(mesh, kind)->all_reduce_sum(squares);                           // each distinct number once
//
// Router weights, norms and maps that the tensor axis does not cut see each rank's own rows alone, and the whole halves of cut maps'
// adapters its own part: their gradients are summed over the axis too.
#pragma once

#include "lora/parameter.h"
#include "parallel/mesh.h"

namespace moetune {

/// Ranks with a copy each, whose gradients add up.
Communicator& replica_group(Mesh& mesh, Replicas replicas);
/// Ranks with a part each, that are the whole together; null: every rank holds the whole.
Communicator* parts_group(Mesh& mesh, Replicas replicas);

}  // namespace moetune
