#include "trainer/replica_groups.h"

#include "parallel/base/error.h"

namespace moetune {

Communicator& replica_group(Mesh& mesh, Replicas replicas) {
  switch (replicas) {
    case Replicas::kEverywhere: return mesh.stage();
    case Replicas::kTensorIndex: return mesh.data();
    case Replicas::kExpertReplicas: return mesh.expert_replicas();
  }
  throw InternalError("replicas of no kind");
}

Communicator* parts_group(Mesh& mesh, Replicas replicas) {
  switch (replicas) {
    case Replicas::kEverywhere: return nullptr;
    case Replicas::kTensorIndex: return &mesh.tp();
    case Replicas::kExpertReplicas: return &mesh.ep();
  }
  throw InternalError("replicas of no kind");
}

}  // namespace moetune
