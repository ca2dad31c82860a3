// The packed frozen weights that are fetched, used and released together, as records in one slab of a store: one record an expert, or
// one in all for the plain maps of a layer.
//
//   FrozenSlabs slabs(device);                              // all on the device; or over a WeightStore that shards and streams
//   FrozenSlab& slab = slabs.add(SlabKind::kExperts, /*layer=*/3, /*units=*/32);
//   slab.hold(gate);  slab.hold(up);  slab.hold(down);      // each FrozenWeight of 32 units
//   slab.close();
//   if (slab.wants(gate, e)) slab.set(gate, e, weight_OI);  // a rank quantises only what it keeps
//   slab.use();                                             // gate, up and down can be made dense
//   slab.release();
//
//   record of unit u:  [gate's parts][up's parts][down's parts]   every record at u * record_bytes()
#pragma once

#include <deque>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "lora/frozen_weight.h"

namespace moetune {

class WeightStore;
class Communicator;

enum class SlabKind { kDense, kExperts };

class FrozenSlab {
 public:
  struct Held {
    FrozenWeight* weight = nullptr;
    std::string name;    ///< Hugging Face key, '*' for the expert of a stack
    int64_t offset = 0;  ///< of its parts in a record
  };

  /// Adds a weight of as many units to every record.
  void hold(FrozenWeight& weight, const std::string& name);
  /// Fixes the layout; the store makes room.
  void close();

  /// Whether this rank keeps any byte of one unit of a weight.
  bool wants(const FrozenWeight& weight, int64_t unit) const;
  /// Quantises a whole matrix and keeps what is this rank's.
  void set(const FrozenWeight& weight, int64_t unit, const at::Tensor& weight_OI);

  /// The bytes are on the device and the weights bound to them until release(). In the order of the store's schedule.
  void use();
  void release();

  SlabKind kind() const { return kind_; }
  int64_t layer() const { return layer_; }
  int64_t units() const { return units_; }
  int64_t record_bytes() const { return record_bytes_; }
  int64_t bytes() const { return units_ * record_bytes_; }
  const std::vector<Held>& held() const { return held_; }
  /// Its number in the store.
  int number() const { return number_; }
  /// The bytes that this rank keeps: where they begin in the slab, and they themselves, uint8.
  std::pair<int64_t, at::Tensor> kept() const;
  /// Whether this rank's is the first of the copies of these bytes: the one that is counted where each byte counts once.
  bool first_copy() const;
  at::Device device() const;

 private:
  friend class FrozenSlabs;
  FrozenSlab(class FrozenSlabs& slabs, SlabKind kind, int64_t layer, int64_t units) : slabs_(slabs), kind_(kind), layer_(layer), units_(units) {}
  const Held& held(const FrozenWeight& weight) const;

  class FrozenSlabs& slabs_;
  SlabKind kind_;
  int64_t layer_, units_;
  int64_t record_bytes_ = 0;
  std::vector<Held> held_;
  int number_ = -1;
};

/// Who shares slabs of a kind, and which of them lie in host memory.
struct SlabPlacement {
  Communicator* dense_replicas = nullptr;   ///< null: every rank keeps its dense slabs whole
  Communicator* expert_replicas = nullptr;
  bool first_dense_copy = true;             ///< no other group of replicas has the same bytes and comes before
  bool first_expert_copy = true;
  std::vector<int64_t> host_layers;         ///< layers whose expert slabs lie in host memory, ascending
  bool dense_on_host = false;               ///< and all dense slabs
};

class FrozenSlabs {
 public:
  /// Everything whole on the device.
  explicit FrozenSlabs(at::Device device);
  /// Over a store that outlives this.
  FrozenSlabs(WeightStore& store, SlabPlacement placement);
  ~FrozenSlabs();

  FrozenSlab& add(SlabKind kind, int64_t layer, int64_t units);
  /// The order of a pass; see WeightStore.
  void schedule(const std::vector<FrozenSlab*>& uses);
  std::deque<FrozenSlab>& all() { return slabs_; }
  /// Bytes that this rank keeps of all slabs.
  int64_t kept_bytes() const;
  WeightStore& store() { return store_; }

 private:
  friend class FrozenSlab;
  std::unique_ptr<WeightStore> own_store_;
  WeightStore& store_;
  SlabPlacement placement_;
  std::deque<FrozenSlab> slabs_;
};

}  // namespace moetune
