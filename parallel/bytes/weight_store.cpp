#include "parallel/bytes/weight_store.h"

#include <ATen/ATen.h>

#include <algorithm>

#include "parallel/base/error.h"
#include "parallel/comm/communicator.h"
#include "parallel/device/host_memory.h"

namespace moetune {

WeightStore::WeightStore(c10::Device device) : device_(device), exposed_(device) {
  for (auto& lane : lanes_) lane = std::make_unique<Lane>(device);
}

WeightStore::~WeightStore() = default;

int64_t WeightStore::num_ranks(const SlabSpec& spec) const {
  return spec.replicas != nullptr ? spec.replicas->size() : 1;
}

int64_t WeightStore::shard_bytes(int64_t slab_bytes, int64_t ranks) {
  constexpr int64_t kAlignment = 256;  // of CUDA's allocations: a shard begins where wide copies like it
  if (ranks == 1) return slab_bytes;
  return ((slab_bytes + ranks - 1) / ranks + kAlignment - 1) / kAlignment * kAlignment;
}

int64_t WeightStore::buffer_bytes(const std::array<int64_t, kLanes>& largest_slab) {
  int64_t bytes = 0;
  for (const int64_t largest : largest_slab) bytes += kBuffers * largest;
  return bytes;
}

int WeightStore::add(const SlabSpec& spec) {
  MT_CHECK(spec.lane >= 0 && spec.lane < kLanes && spec.bytes >= 0, "slab ", spec.name, " of ", spec.bytes,
           " bytes in lane ", spec.lane);
  Lane& lane = *lanes_[spec.lane];
  MT_CHECK(lane.order.next() < 0, "slab ", spec.name, " comes after the first schedule");
  MT_CHECK(lane.trains.value_or(spec.trains) == spec.trains, "slab ", spec.name, " in a lane of others");
  lane.trains = spec.trains;
  Slab slab;
  slab.spec = spec;
  slab.shard_bytes = shard_bytes(spec.bytes, num_ranks(spec));
  slab.resident = spec.tier == SlabTier::kDevice && num_ranks(spec) == 1;
  slab.kept = spec.tier == SlabTier::kHost
                  ? host_bytes(slab.shard_bytes, device_.is_cuda())
                  : at::zeros({slab.shard_bytes}, at::TensorOptions(at::kByte).device(device_));
  if (!slab.resident) lane.largest = std::max(lane.largest, slab.shard_bytes * num_ranks(spec));
  slabs_.push_back(std::move(slab));
  return static_cast<int>(slabs_.size()) - 1;
}

ByteRange WeightStore::shard(int slab) const {
  const Slab& of = slabs_.at(slab);
  const int64_t rank = of.spec.replicas != nullptr ? of.spec.replicas->rank() : 0;
  const int64_t first = std::min(rank * of.shard_bytes, of.spec.bytes);
  return {first, std::min(of.shard_bytes, of.spec.bytes - first)};
}

bool WeightStore::owns(int slab, ByteRange range) const {
  const ByteRange mine = shard(slab);
  return range.first < mine.first + mine.count && mine.first < range.first + range.count;
}

void WeightStore::put(int slab, int64_t first, const at::Tensor& bytes) {
  const ByteRange mine = shard(slab);
  const int64_t begin = std::max(first, mine.first), end = std::min(first + bytes.numel(), mine.first + mine.count);
  if (begin >= end) return;
  Slab& of = slabs_.at(slab);
  of.kept.narrow(0, begin - mine.first, end - begin).copy_(bytes.narrow(0, begin - first, end - begin));
  of.written = StreamPoint::of_current(device_);
}

const at::Tensor& WeightStore::kept(int slab) const { return slabs_.at(slab).kept; }

void WeightStore::rewritten(int slab, const StreamPoint& written) {
  Slab& of = slabs_.at(slab);
  MT_CHECK(of.spec.trains, "slab ", of.spec.name, " does not train");
  of.written = written;
}

void WeightStore::schedule(const std::vector<int>& uses) {
  for (int lane_number = 0; lane_number < kLanes; ++lane_number) {
    Lane& lane = *lanes_[lane_number];
    std::vector<int> own;
    for (const int slab : uses) {
      if (slabs_.at(slab).spec.lane == lane_number && !slabs_[slab].resident) own.push_back(slab);
    }
    for (int i = 0; i < kBuffers; ++i) {
      MT_CHECK(!lane.order.in_use(i), "a new schedule while slab ", slabs_[lane.order.slab_in(i)].spec.name,
               " is in use");
      at::Tensor& bytes = lane.buffers[i].bytes;
      if (!own.empty() && (!bytes.defined() || bytes.numel() < lane.largest)) {
        bytes = at::empty({lane.largest}, at::TensorOptions(at::kByte).device(device_));
      }
    }
    lane.order.begin(std::move(own), lane.trains.value_or(false) ? Rounds::kAlone : Rounds::kFollow);
    fetch_ahead(lane);
  }
}

void WeightStore::fetch_ahead(Lane& lane) {
  for (const Fetch& due : lane.order.due()) fetch(lane, lane.buffers[due.buffer], due.slab);
}

void WeightStore::fetch(Lane& lane, Buffer& buffer, int slab) {
  const Slab& of = slabs_[slab];
  Communicator* replicas = of.spec.replicas;
  const int64_t ranks = num_ranks(of.spec);
  const at::Tensor whole = buffer.bytes.narrow(0, 0, ranks * of.shard_bytes);
  if (of.spec.before_fetch) of.spec.before_fetch();
  // On a GPU next to nothing of the current stream; on a CPU the fetch itself.
  const StreamTimer::Piece exposed(exposed_);
  buffer.ready = lane.stream.run(buffer.free, [&] {
    of.written.hold_current();
    at::Tensor own = of.kept;
    if (of.spec.tier == SlabTier::kHost) {
      own = whole.narrow(0, ranks > 1 ? replicas->rank() * of.shard_bytes : 0, of.shard_bytes);
      own.copy_(of.kept, /*non_blocking=*/true);
      traffic_.copied += of.shard_bytes;
    }
    if (ranks > 1) {
      replicas->all_gather(whole, own);
      traffic_.gathered += (ranks - 1) * of.shard_bytes;
    }
  });
}

at::Tensor WeightStore::use(int slab) {
  const Slab& of = slabs_.at(slab);
  if (of.resident) return of.kept;
  Lane& lane = *lanes_[of.spec.lane];
  const int next = lane.order.next();
  MT_CHECK(next == slab, "slab ", of.spec.name, " is used out of turn",
           next < 0 ? std::string(": nothing is scheduled") : ", next is " + slabs_[next].spec.name);
  Buffer& buffer = lane.buffers[lane.order.use()];
  {
    const StreamTimer::Piece exposed(exposed_);
    buffer.ready.hold_current();
  }
  fetch_ahead(lane);
  return buffer.bytes.narrow(0, 0, of.spec.bytes);
}

void WeightStore::release(int slab) {
  const Slab& of = slabs_.at(slab);
  if (of.resident) return;
  Lane& lane = *lanes_[of.spec.lane];
  Buffer& buffer = lane.buffers[lane.order.release(slab)];
  buffer.free = StreamPoint::of_current(device_);
  fetch_ahead(lane);
}

void WeightStore::abandon() {
  for (const auto& lane : lanes_) {
    for (int i = 0; i < kBuffers; ++i) {
      if (!lane->order.in_use(i)) continue;
      lane->order.release(lane->order.slab_in(i));
      lane->buffers[i].free = StreamPoint::of_current(device_);
    }
  }
}

}  // namespace moetune
