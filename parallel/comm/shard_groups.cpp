#include "parallel/comm/shard_groups.h"

#include <algorithm>

#include "parallel/comm/launch.h"

namespace moetune {
namespace {

/// The first rank that would hold the same dense weights (or experts) as the one at `place`; `cut`: of those that the
/// tensor axis cuts where it cuts any.
int64_t first_holder(const MeshShape& shape, const MeshCoordinates& place, bool experts, bool cut = true) {
  const bool whole = !cut || (experts && shape.expert_tp == 1);
  return rank_at(shape, {.pp = place.pp, .dp = 0, .ep = experts ? place.ep : 0, .tp = whole ? 0 : place.tp});
}

int64_t num_ranks(const MeshShape& shape, ShardScope scope, int64_t ranks_per_host, bool experts, bool cut = true) {
  if (scope == ShardScope::kNone) return 1;
  const int64_t considered =
      scope == ShardScope::kAll ? shape.num_ranks() : std::min(ranks_per_host, shape.num_ranks());
  int64_t count = 0;
  for (int64_t rank = 0; rank < considered; ++rank) {
    count += first_holder(shape, coordinates_of(shape, rank), experts, cut) == 0;
  }
  return count;
}

}  // namespace

ShardGroups::ShardGroups(Launch& launch, const Mesh& mesh, ShardScope scope, bool uncut) : scope_(scope) {
  // The holders of the same weights fall into parts, each named by a rank: itself, the first of its host, or the first
  // of all.
  const auto part_of = [&](int64_t rank, int64_t first) -> int64_t {
    return scope == ShardScope::kNone ? rank : scope == ShardScope::kNode ? launch.host_leader_of(rank) : first;
  };
  const auto make = [&](bool experts, bool cut, const char* name, bool& first_copy) -> std::unique_ptr<Communicator> {
    const int64_t first = mesh.first_rank() + first_holder(mesh.shape(), mesh.here(), experts, cut);
    const int64_t part = part_of(launch.rank(), first);
    first_copy = part == part_of(first, first);
    if (scope == ShardScope::kNone) return nullptr;
    auto group = launch.make_group(static_cast<int>(first * launch.world_size() + part), launch.rank(), name);
    return group->size() > 1 ? std::move(group) : nullptr;
  };
  dense_ = make(false, true, "shards (dense)", first_dense_copy_);
  experts_ = make(true, true, "shards (experts)", first_expert_copy_);
  bool first_copy = false;  // nobody asks
  if (uncut && mesh.shape().tp > 1) uncut_dense_ = make(false, false, "shards (uncut)", first_copy);
  if (uncut && mesh.shape().expert_tp > 1) uncut_experts_ = make(true, false, "shards (uncut, experts)", first_copy);
}

int64_t ShardGroups::dense_ranks(const MeshShape& shape, ShardScope scope, int64_t ranks_per_host) {
  return num_ranks(shape, scope, ranks_per_host, false);
}
int64_t ShardGroups::expert_ranks(const MeshShape& shape, ShardScope scope, int64_t ranks_per_host) {
  return num_ranks(shape, scope, ranks_per_host, true);
}
int64_t ShardGroups::uncut_dense_ranks(const MeshShape& shape, ShardScope scope, int64_t ranks_per_host) {
  return num_ranks(shape, scope, ranks_per_host, false, /*cut=*/false);
}
int64_t ShardGroups::uncut_expert_ranks(const MeshShape& shape, ShardScope scope, int64_t ranks_per_host) {
  return num_ranks(shape, scope, ranks_per_host, true, /*cut=*/false);
}

}  // namespace moetune
