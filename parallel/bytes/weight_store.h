// Where the weights of layers lie, packed ones that are frozen and trained ones, and how they come to the device in
// time: slabs of bytes, sharded over ranks, in device or host memory.
//
//   WeightStore store(device);
//   const int slab = store.add({.name = "experts", .bytes = n, .tier = SlabTier::kHost, .replicas = &group});
//   if (store.owns(slab, first, count)) store.put(slab, first, packed);  // loading: a rank keeps its own range
//   store.schedule(uses);                // the slabs of a pass, in order, turn included
//   at::Tensor bytes = store.use(slab);  // whole, on the device, in order on the current stream
//   store.release(slab);
//
// ZeRO-3 (Rajbhandari et al. 2020): of a slab, each rank of `replicas`, which would otherwise hold equal copies, keeps
// an equal range. ZeRO-Infinity (2021): the range may lie in pinned host memory; then each rank copies its own over
// PCIe and the group gathers the rest. What travels are the packed bytes, never a dense form. A slab that trains is
// written anew between rounds of uses, by each rank its own range; its lane fetches nothing beyond a round.
//
// A slab that is whole and on the device is handed out where it lies. All others pass through the buffers of their
// lane: kBuffers each of the lane's largest slab, filled ahead of use on a side stream as parallel/bytes/fetch_schedule
// says; the slabs at either turn of a sweep are not fetched again. All ranks of a group make the same calls in the same
// order; gathers are issued by the calling thread.
#pragma once

#include <ATen/core/Tensor.h>

#include <array>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "parallel/bytes/fetch_schedule.h"
#include "parallel/device/side_stream.h"
#include "parallel/device/stream_timer.h"

namespace moetune {

class Communicator;

enum class SlabTier { kDevice, kHost };

struct SlabSpec {
  std::string name;  ///< for messages
  int64_t bytes = 0;
  SlabTier tier = SlabTier::kDevice;
  int lane = 0;                      ///< slabs that take turns in the same buffers: below kLanes
  Communicator* replicas = nullptr;  ///< the ranks that share it; null: this rank keeps it whole
  bool trains = false;               ///< rewritten() will come; in a lane all do, or none
  /// Called before the range is read for a use: whoever writes it anew has done so when this returns.
  std::function<void()> before_fetch = {};
};

/// A range of bytes of a slab.
struct ByteRange {
  int64_t first = 0;
  int64_t count = 0;
};

/// Bytes moved to serve uses so far.
struct StoreTraffic {
  int64_t copied = 0;    ///< from host to device, by this rank
  int64_t gathered = 0;  ///< received from other ranks
};

class WeightStore {
 public:
  static constexpr int kLanes = 6;
  static constexpr int kBuffers = FetchSchedule::kBuffers;  ///< of a lane

  explicit WeightStore(c10::Device device);
  ~WeightStore();

  c10::Device device() const { return device_; }
  /// Adds a slab and allocates this rank's range of it, zeroed. Returns its number. Before the first schedule().
  int add(const SlabSpec& spec);
  /// What this rank keeps of a slab.
  ByteRange shard(int slab) const;
  /// Whether any of these bytes is this rank's to keep.
  bool owns(int slab, ByteRange range) const;
  /// Keeps what is this rank's of bytes (uint8, any device) that begin at `first` of the slab. Waits for nothing on the
  /// device.
  void put(int slab, int64_t first, const at::Tensor& bytes);
  /// This rank's range where it lies, uint8, of shard().count bytes and filling behind them.
  const at::Tensor& kept(int slab) const;
  /// This rank's range of a slab that trains is anew where it lies, from `written` on. Between rounds of uses, or from
  /// before_fetch.
  void rewritten(int slab, const StreamPoint& written);

  /// The uses to come, one after the other; of what does not train again and again, and what is in a buffer stays
  /// there.
  void schedule(const std::vector<int>& uses);
  /// The slab's bytes [bytes] on the device: current-stream work may read them until release(). Throws InternalError
  /// where the schedule has another slab next in its lane. Collective over the slab's replicas (through fetches ahead).
  at::Tensor use(int slab);
  void release(int slab);
  /// Releases all that is in use, behind a failure; the next schedule() may follow.
  void abandon();

  const StoreTraffic& traffic() const { return traffic_; }
  /// Seconds that the current stream stood waiting for slabs since the last call.
  double take_exposed_s() { return exposed_.take_s(); }
  /// Device bytes of the buffers of lanes with slabs of these sizes (0: none of the lane needs one).
  static int64_t buffer_bytes(const std::array<int64_t, kLanes>& largest_slab);
  /// Bytes of a slab that each of `ranks` keeps: an equal range, a multiple of 256.
  static int64_t shard_bytes(int64_t slab_bytes, int64_t ranks);

 private:
  struct Slab {
    SlabSpec spec;
    int64_t shard_bytes = 0;
    at::Tensor kept;
    StreamPoint written;
    bool resident = false;  // whole and on the device
  };
  struct Buffer {
    at::Tensor bytes;
    StreamPoint ready, free;
  };
  struct Lane {
    explicit Lane(c10::Device device) : stream(device) {}
    SideStream stream;
    FetchSchedule order;
    std::array<Buffer, kBuffers> buffers;
    int64_t largest = 0;
    std::optional<bool> trains;  // of its slabs, once there is one
  };

  void fetch_ahead(Lane& lane);
  void fetch(Lane& lane, Buffer& buffer, int slab);
  int64_t num_ranks(const SlabSpec& spec) const;

  c10::Device device_;
  std::vector<Slab> slabs_;
  std::array<std::unique_ptr<Lane>, kLanes> lanes_;
  StoreTraffic traffic_;
  StreamTimer exposed_;
};

}  // namespace moetune
