// The packed frozen weights that are fetched, used and released together, as records in one slab of a store: one record
// an expert, or one in all for the plain maps of a layer.
//
//   FrozenSlabs slabs(device);  // all on the device; or over a WeightStore that shards and streams
//   FrozenSlab& slab = slabs.add(SlabKind::kExperts, LayerId::block(3), /*units=*/32);
//   slab.hold(gate);  slab.hold(up);  slab.hold(down);  // each FrozenWeight of 32 units
//   slab.close();
//   slab.fill(read);            // from the cache, else a rank reads and quantises only what it keeps
//   slab.use();                 // gate, up and down can be made dense
//   slab.release();
//
//   record of unit u:  [gate's parts][up's parts][down's parts]   every record at u * record_bytes()
#pragma once

#include <deque>
#include <functional>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "lora/frozen_weight.h"
#include "lora/layer_id.h"

namespace moetune {

class WeightStore;
class Communicator;
class SlabCache;
class SlabFile;

enum class SlabKind { kDense, kExperts };

/// Which of the units of the whole model a slab holds: from `first` on, of `all`.
struct SlabUnits {
  int64_t first = 0;
  int64_t all = 1;
};

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

  /// A matrix of the model by its Hugging Face key, of exactly that shape, in any float dtype.
  using MatrixReader = std::function<at::Tensor(const std::string& name, at::IntArrayRef shape)>;
  /// Takes the matrices of which this rank keeps any byte from the cache, where there is one and it has them. The
  /// others it reads, packs, hands to the cache and forgets, one after the other.
  void fill(const MatrixReader& read);
  /// Whether this rank keeps any byte of one unit of a weight.
  bool wants(const FrozenWeight& weight, int64_t unit) const;
  /// Quantises a whole matrix and keeps what is this rank's.
  void set(const FrozenWeight& weight, int64_t unit, const at::Tensor& weight_OI);

  /// The bytes are on the device and the weights bound to them until release(). In the order of the store's schedule.
  void use();
  void release();

  SlabKind kind() const { return kind_; }
  LayerId layer() const { return layer_; }
  int64_t units() const { return units_; }
  int64_t record_bytes() const { return record_bytes_; }
  int64_t bytes() const { return units_ * record_bytes_; }
  const std::vector<Held>& held() const { return held_; }
  /// Its number in the store.
  int number() const { return number_; }
  /// The bytes that this rank keeps: where they begin in the slab, and they themselves, uint8.
  std::pair<int64_t, at::Tensor> kept() const;
  /// Whether ranks keep a range each.
  bool is_shared() const;
  /// Whether this rank's is the first of the copies of these bytes: the one that is counted where each byte counts
  /// once.
  bool first_copy() const;
  at::Device device() const;

 private:
  friend class FrozenSlabs;
  /// One unit of a weight, and its place in the slab's file.
  struct Matrix {
    const Held* held = nullptr;
    int64_t unit = 0;
    size_t place = 0;
  };
  FrozenSlab(class FrozenSlabs& slabs, SlabKind kind, LayerId layer, int64_t units, SlabUnits of)
      : slabs_(slabs), kind_(kind), layer_(layer), units_(units), of_(of) {}
  const Held& held(const FrozenWeight& weight) const;
  std::string matrix_name(const Held& held, int64_t number) const;
  std::unique_ptr<SlabFile> open_file() const;
  void recall(const SlabFile& file, std::vector<Matrix>& wanted);
  /// Keeps what is this rank's of a matrix's packed parts.
  void keep(const FrozenWeight& weight, int64_t unit, const std::vector<at::Tensor>& packed);

  class FrozenSlabs& slabs_;
  SlabKind kind_;
  LayerId layer_;
  int64_t units_;
  SlabUnits of_;
  int64_t record_bytes_ = 0;
  std::vector<Held> held_;
  int number_ = -1;
};

/// Who shares slabs of a kind, and which of them lie in host memory.
struct SlabPlacement {
  Communicator* dense_replicas = nullptr;  ///< null: every rank keeps its dense slabs whole
  Communicator* expert_replicas = nullptr;
  bool first_dense_copy = true;  ///< no other group of replicas has the same bytes and comes before
  bool first_expert_copy = true;
  std::vector<LayerId> host_layers;  ///< layers whose expert slabs lie in host memory, ascending
  bool dense_on_host = false;        ///< and all dense slabs
};

class FrozenSlabs {
 public:
  /// Everything whole on the device.
  explicit FrozenSlabs(at::Device device);
  /// Over a store that outlives this. `cache`: where packed matrices are looked for and left, null: nowhere; it must
  /// outlive filling.
  FrozenSlabs(WeightStore& store, SlabPlacement placement, SlabCache* cache = nullptr);
  ~FrozenSlabs();

  FrozenSlab& add(SlabKind kind, LayerId layer, int64_t units, SlabUnits of = {});
  /// Ends whatever use a pass that failed has left open.
  void abandon();
  std::deque<FrozenSlab>& all() { return slabs_; }
  /// Bytes that this rank keeps of all slabs.
  int64_t kept_bytes() const;
  WeightStore& store() { return store_; }

 private:
  friend class FrozenSlab;
  std::unique_ptr<WeightStore> own_store_;
  WeightStore& store_;
  SlabPlacement placement_;
  SlabCache* cache_ = nullptr;
  std::deque<FrozenSlab> slabs_;
};

}  // namespace moetune
