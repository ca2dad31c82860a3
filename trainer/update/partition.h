// What trains on this rank, cut over the ranks that hold copies of it (ZeRO, Rajbhandari et al. 2020): each rank keeps
// masters and moments of its own part alone, gets the sum of its part's gradients, and gives its part's new values to
// the others.
//
//   Partition partition(model.parameters, mesh);
//   const std::vector<at::Tensor> masters = partition.shards(at::kFloat, SlabTier::kHost);
//   at::Tensor flat = group.gathered(own);      // collective over group.ranks()
//
// The unit is the tensors of one layer on the same ranks, weights apart from adapters: they are laid end to end as one
// flat vector, which is cut into equal ranges, one a rank in the order of its group; zeros fill the last range up. A
// range may begin and end inside a tensor. A weight begins where kernels like it, behind zeros: its working copy lies
// in the flat vector itself (trainer/update/trained_slabs.h).
#pragma once

#include <compare>
#include <functional>
#include <vector>

#include "parallel/base/ceil_div.h"
#include "parallel/bytes/weight_store.h"
#include "trainer/update/replica_groups.h"

namespace moetune {

class TrainedSlab;

/// What the optimizer's settings of a tensor depend on.
struct UpdateRule {
  bool is_b = false;  ///< the learning rate of B
  bool decays = true;
  auto operator<=>(const UpdateRule&) const = default;
};

class FlatGroup {
 public:
  /// A tensor and its place in the flat vector.
  struct Member {
    Parameter* parameter;
    int64_t first;
  };
  /// What this rank's range holds of a tensor.
  struct Piece {
    Parameter* parameter;
    int64_t first;     ///< of the tensor's numbers, row-major
    int64_t in_shard;  ///< where they stand in the shard
    int64_t count;     ///< above zero
  };

  /// Numbers of this rank's range that are updated alike.
  struct Run {
    UpdateRule rule;
    int64_t in_shard;
    int64_t count;  ///< above zero
  };

  FlatGroup(std::vector<Parameter*> parameters, Communicator& ranks);

  LayerId layer() const { return members_.front().parameter->info().layer; }
  Replicas replicas() const { return members_.front().parameter->info().replicas; }
  /// ParameterInfo says so of all members, or of none.
  bool on_first_and_last_stage() const { return members_.front().parameter->info().on_first_and_last_stage; }
  Communicator& ranks() const { return *ranks_; }
  /// By update rule, those of one rule beside each other: a shard is a few runs.
  const std::vector<Member>& members() const { return members_; }
  /// Numbers of a shard, the same on every rank, and of the whole flat vector, filling included.
  int64_t shard_size() const { return shard_size_; }
  int64_t flat_size() const { return shard_size_ * ranks_->size(); }
  /// The flat number that this rank's shard begins with.
  int64_t shard_begin() const { return shard_size_ * ranks_->rank(); }
  std::vector<Piece> own_pieces() const;
  /// Copies what this rank's shard has of the parameters' masters into `shard`, zeros before, and releases them.
  void cut_masters(const at::Tensor& shard) const;
  /// All of the shard but the filling, in order.
  std::vector<Run> own_runs() const;

  /// Where the working copies of weights lie; null: each has its own place.
  TrainedSlab* slab() const { return slab_; }
  void lies_in(TrainedSlab& slab) { slab_ = &slab; }

  /// The whole flat vector on the device, from every rank's shard (host or device). Collective over ranks().
  at::Tensor gathered(const at::Tensor& own_shard) const;
  /// A member's tensor within a flat vector.
  static at::Tensor view(const at::Tensor& flat, const Member& member);

 private:
  std::vector<Member> members_;
  Communicator* ranks_;
  TrainedSlab* slab_ = nullptr;
  int64_t numel_ = 0;
  int64_t shard_size_ = 0;
};

/// Those of these parameters that are kept and updated together, in the order of the layers.
std::vector<FlatGroup> flat_groups(const std::vector<Parameter*>& parameters, Mesh& mesh);

class Partition {
 public:
  /// The same groups on every rank of a replica group. Must not outlive the parameters or the mesh. `weights`: groups
  /// of some of the parameters that lie in slabs (TrainedSlabs::groups), which must stay too.
  Partition(ParameterSet& parameters, Mesh& mesh, std::vector<FlatGroup> weights = {});

  /// By layer, the lowest first: the order of a way down.
  const std::vector<FlatGroup>& groups() const { return groups_; }
  /// Indices into groups() of those of `layer`.
  std::vector<size_t> of_layer(LayerId layer) const;
  /// Of masters, moments and gradients, and of working copies.
  at::ScalarType wide_dtype() const { return accumulate_dtype(compute_); }
  at::ScalarType compute_dtype() const { return compute_; }
  at::Device device() const { return device_; }
  /// By group zeros [shard_size]; in host memory, pinned where the parameters live on a GPU: one piece of memory, cut
  /// up. Groups that are not `wanted` have nothing; without it all are.
  std::vector<at::Tensor> shards(at::ScalarType type, SlabTier tier,
                                 const std::function<bool(const FlatGroup&)>& wanted = {}) const;
  /// Numbers of one rank's shard of `elements` numbers of a flat vector over `ranks`.
  static int64_t shard_numbers(int64_t elements, int64_t ranks, Role role);
  /// Numbers of a flat vector that a tensor takes, with zeros behind it.
  static int64_t flat_numbers(int64_t elements, Role role);

 private:
  at::Device device_;
  at::ScalarType compute_;
  std::vector<FlatGroup> groups_;
};

}  // namespace moetune
