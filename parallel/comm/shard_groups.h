// The ranks that share frozen weights of which each would otherwise hold a copy (ZeRO-3): dense ones over the ranks
// that take different data, experts over the ranks that hold the same experts, or the same part of each; all of them,
// or those of one node.
//
//   ShardGroups groups(launch, mesh, ShardScope::kAll);
//   store.add({..., .replicas = groups.experts()});      // null: this rank keeps the slab whole
//
// Communicators of their own: gathers run beside the exchanges of a step, and what they send is counted apart.
#pragma once

#include <memory>

#include "parallel/comm/mesh.h"
#include "parallel/comm/shard_scope.h"

namespace moetune {

class ShardGroups {
 public:
  /// All ranks of the job call it.
  ShardGroups(Launch& launch, const Mesh& mesh, ShardScope scope);

  /// Null where nothing is shared.
  Communicator* dense() const { return dense_.get(); }
  Communicator* experts() const { return experts_.get(); }
  /// Whether what this rank keeps is the first of its copies: no group before this rank's holds the same weights.
  bool first_dense_copy() const { return first_dense_copy_; }
  bool first_expert_copy() const { return first_expert_copy_; }

  /// Ranks that share, where a host runs `ranks_per_host` of them: those of a plan, before any rank is there.
  static int64_t dense_ranks(const MeshShape& shape, ShardScope scope, int64_t ranks_per_host);
  static int64_t expert_ranks(const MeshShape& shape, ShardScope scope, int64_t ranks_per_host);

 private:
  std::unique_ptr<Communicator> dense_, experts_;
  bool first_dense_copy_ = true, first_expert_copy_ = true;
};

}  // namespace moetune
