// The one home of trained weights: working copies of a layer's weights end to end in a slab of the store, sharded over
// the ranks that would hold copies (ZeRO-3), on the device or streamed from host memory, or whole on the device. Where
// all copies share, what a rank keeps of a slab is what its optimizer updates.
//
//   TrainedSlabs slabs(mesh, shard_groups, store, SlabTier::kDevice);
//   slabs.take(model.parameters.of_layer(layer));     // as soon as a layer is loaded: nothing is held whole for long
//   slabs.before_fetch([&](const TrainedSlab& slab) { optimizer.before_slab(slab); });
//   slabs.use(layer);     ... parameter.working ...     slabs.release(layer);
//
// Parameter::working, the modules' handles and whatever a graph keeps of them are views of one storage a slab, whose
// bytes come with use() and go with release(): a graph that outlives a use finds them again in the next, wherever they
// lie then. In between there is nothing to read. The layers outside blocks (embedding, turn) are always whole and on
// the device.
#pragma once

#include <functional>
#include <map>
#include <memory>
#include <vector>

#include "parallel/bytes/weight_store.h"
#include "parallel/comm/shard_groups.h"
#include "trainer/sweep/layer_weights.h"
#include "trainer/update/partition.h"

namespace moetune {

class TrainedSlab {
 public:
  /// Takes the group's masters and working copies over. `spec`: all but its bytes. `stays`: on every rank that has such
  /// a slab its numbers lie whole on the device.
  TrainedSlab(FlatGroup group, WeightStore& store, SlabSpec spec, bool stays);

  const FlatGroup& group() const { return group_; }
  /// This rank's shard of the masters, on the host, wide: the numbers that training starts from, until the optimizer
  /// takes them over.
  at::Tensor& master();
  void release_master() { master_.reset(); }
  /// Where this rank's shard lies, to be written ahead of publish(): [group().shard_size()] in compute dtype, on host
  /// or device. Not between a slab's first use of a round and its last. Undefined where the rank keeps another part.
  const at::Tensor& own() const { return own_; }
  /// New numbers from every rank's shard (compute dtype; host or device; own() itself where it is defined), which is
  /// there from `written` on. Collective over group().ranks(), but for publishes_alone().
  void publish(const at::Tensor& own_shard, const StreamPoint& written);
  /// The same from master().
  void publish_masters();
  /// What the store keeps of it here is this rank's shard, or there is nothing of it: publishing is local, and the
  /// others get it as they fetch.
  bool publishes_alone() const { return same_shards_ || group_.flat_size() == 0; }

  /// In the order of the store's schedule.
  void use();
  void release();
  /// release(), where the store knows already.
  void unbind();
  /// Whole and on the device, always: it needs no use.
  bool is_resident() const { return resident_; }
  int number() const { return number_; }
  int64_t kept_bytes() const { return store_.shard(number_).count; }

 private:
  void fill(bool stays);
  at::Tensor place_of_own() const;
  void bind(void* bytes);

  FlatGroup group_;
  WeightStore& store_;
  at::ScalarType compute_;
  bool resident_;
  bool same_shards_;  ///< the store's ranges are the group's
  int number_ = -1;
  at::Tensor master_;
  at::Tensor own_;
  c10::Storage storage_;
};

class TrainedSlabs : public LayerWeights {
 public:
  /// `tier`: of what is not resident where it is on the host. Everything given must outlive this.
  TrainedSlabs(Mesh& mesh, const ShardGroups& shards, WeightStore& store, SlabTier tier);

  /// Takes over those of these parameters that are weights and not here yet; of a layer those of one kind of replicas
  /// together.
  void take(const std::vector<Parameter*>& parameters);
  /// Called before a slab is fetched: its update is done when it returns. Ranks may fetch at different times, or not at
  /// all where they hold none of the experts that train, so nothing collective may come of it.
  void before_fetch(std::function<void(const TrainedSlab&)> finish_update) {
    finish_update_ = std::move(finish_update);
  }

  void use(LayerId layer) override;
  void release(LayerId layer) override;
  void abandon() override;
  std::vector<int> uses(LayerId layer) const override;
  /// The slab that a parameter lies in; null: in none.
  TrainedSlab* of(const Parameter& parameter);
  std::vector<TrainedSlab*> all();
  /// What lies in them, for a Partition.
  std::vector<FlatGroup> groups();
  int64_t kept_bytes() const;

  static constexpr int kFirstLane = 2;  ///< of the store; before it are those of frozen dense maps and experts
  /// The lane of a layer's slabs of a kind.
  static int lane(Replicas replicas) { return kFirstLane + static_cast<int>(replicas); }

 private:
  using Slabs = std::vector<std::unique_ptr<TrainedSlab>>;
  /// None of a layer without any.
  const Slabs& of_layer(LayerId layer) const;

  Mesh& mesh_;
  const ShardGroups& shards_;
  WeightStore& store_;
  SlabTier tier_;
  std::function<void(const TrainedSlab&)> finish_update_;
  std::map<LayerId, Slabs> slabs_;
};

}  // namespace moetune
