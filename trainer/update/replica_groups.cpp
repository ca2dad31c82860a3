#include "trainer/update/replica_groups.h"

#include "parallel/base/error.h"

namespace moetune {

Communicator& replica_group(Mesh& mesh, Replicas replicas) {
  switch (replicas) {
    case Replicas::kEverywhere: return mesh.stage();
    case Replicas::kTensorIndex: return mesh.data();
    case Replicas::kExpertReplicas: return mesh.expert_replicas();
    case Replicas::kExpertTensorIndex: return mesh.dp();
  }
  throw InternalError("replicas of no kind");
}

int64_t num_replicas(const MeshShape& shape, Replicas replicas) {
  switch (replicas) {
    case Replicas::kEverywhere: return shape.dp * shape.ep * shape.tp;
    case Replicas::kTensorIndex: return shape.dp * shape.ep;
    case Replicas::kExpertReplicas: return shape.dp * shape.tp;
    case Replicas::kExpertTensorIndex: return shape.dp;
  }
  throw InternalError("replicas of no kind");
}

}  // namespace moetune
