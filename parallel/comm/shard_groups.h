// The ranks that share weights of which each would otherwise hold a copy (ZeRO-3): dense ones over the ranks that take
// different data, experts over the ranks that hold the same experts, or the same part of each; all of them, or those of
// one node. What trains is held apart where the tensor axis does not cut it, and is shared over that axis too.
//
//   ShardGroups groups(launch, mesh, ShardScope::kAll, /*uncut=*/false);
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
  /// All ranks of the job call it. `uncut`: with the groups of what the tensor axis does not cut.
  ShardGroups(Launch& launch, const Mesh& mesh, ShardScope scope, bool uncut);

  ShardScope scope() const { return scope_; }
  /// Null where nothing is shared.
  Communicator* dense() const { return dense_.get(); }
  Communicator* experts() const { return experts_.get(); }
  /// Of what is equal on all ranks of a stage, and of what all ranks with the same experts hold whole.
  Communicator* uncut_dense() const { return uncut_dense_ ? uncut_dense_.get() : dense(); }
  Communicator* uncut_experts() const { return uncut_experts_ ? uncut_experts_.get() : experts(); }
  /// Whether what this rank keeps is the first of its copies: no group before this rank's holds the same weights.
  bool first_dense_copy() const { return first_dense_copy_; }
  bool first_expert_copy() const { return first_expert_copy_; }

  /// Ranks that share, where a host runs `ranks_per_host` of them: those of a plan, before any rank is there.
  static int64_t dense_ranks(const MeshShape& shape, ShardScope scope, int64_t ranks_per_host);
  static int64_t expert_ranks(const MeshShape& shape, ShardScope scope, int64_t ranks_per_host);
  static int64_t uncut_dense_ranks(const MeshShape& shape, ShardScope scope, int64_t ranks_per_host);
  static int64_t uncut_expert_ranks(const MeshShape& shape, ShardScope scope, int64_t ranks_per_host);

 private:
  ShardScope scope_;
  std::unique_ptr<Communicator> dense_, experts_;
  std::unique_ptr<Communicator> uncut_dense_, uncut_experts_;  // where they are other ranks
  bool first_dense_copy_ = true, first_expert_copy_ = true;
};

}  // namespace moetune
