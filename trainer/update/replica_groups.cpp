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

Communicator* shard_group(const ShardGroups& shards, Replicas replicas) {
  switch (replicas) {
    case Replicas::kEverywhere: return shards.uncut_dense();
    case Replicas::kTensorIndex: return shards.dense();
    case Replicas::kExpertReplicas: return shards.uncut_experts();
    case Replicas::kExpertTensorIndex: return shards.experts();
  }
  throw InternalError("replicas of no kind");
}

int64_t num_shards(const MeshShape& shape, Replicas replicas, ShardScope scope, int64_t ranks_per_host) {
  switch (replicas) {
    case Replicas::kEverywhere: return ShardGroups::uncut_dense_ranks(shape, scope, ranks_per_host);
    case Replicas::kTensorIndex: return ShardGroups::dense_ranks(shape, scope, ranks_per_host);
    case Replicas::kExpertReplicas: return ShardGroups::uncut_expert_ranks(shape, scope, ranks_per_host);
    case Replicas::kExpertTensorIndex: return ShardGroups::expert_ranks(shape, scope, ranks_per_host);
  }
  throw InternalError("replicas of no kind");
}

int64_t stride_of_shards(const MeshShape& shape, Replicas replicas) {
  switch (replicas) {
    case Replicas::kEverywhere: return 1;
    case Replicas::kTensorIndex: return shape.tp;
    case Replicas::kExpertReplicas: return shape.dp > 1 ? shape.ep : 1;
    case Replicas::kExpertTensorIndex: return shape.ep * shape.tp;
  }
  throw InternalError("replicas of no kind");
}

}  // namespace moetune
