#include "trainer/update/trained_slabs.h"

#include <algorithm>

#include "parallel/base/error.h"

namespace moetune {
namespace {

int64_t size_of(at::ScalarType type) { return static_cast<int64_t>(c10::elementSize(type)); }

}  // namespace

TrainedSlab::TrainedSlab(FlatGroup group, WeightStore& store, SlabSpec spec, bool stays)
    : group_(std::move(group)), store_(store), compute_(group_.members().front().parameter->working.scalar_type()) {
  const int64_t shards = spec.replicas != nullptr ? spec.replicas->size() : 1;
  // None of the experts that train may lie here.
  resident_ = (shards == 1 && spec.tier == SlabTier::kDevice) || group_.flat_size() == 0;
  same_shards_ = shards == group_.ranks().size();
  spec.bytes = group_.flat_size() * size_of(compute_);
  spec.trains = true;
  number_ = store_.add(spec);
  if (same_shards_) {
    MT_CHECK(store_.shard(number_).first == group_.shard_begin() * size_of(compute_), spec.name, ": cut at ",
             store_.shard(number_).first, " bytes, its optimizer at number ", group_.shard_begin());
  }
  own_ = place_of_own();
  fill(stays);
}

at::Tensor TrainedSlab::place_of_own() const {
  const int64_t bytes = group_.shard_size() * size_of(compute_);
  if (same_shards_) return store_.kept(number_).narrow(0, 0, bytes).view(compute_);
  if (resident_) return store_.kept(number_).view(compute_).narrow(0, group_.shard_begin(), group_.shard_size());
  return {};
}

void TrainedSlab::fill(bool stays) {
  at::NoGradGuard no_grad;
  const at::Device device = store_.device();
  storage_ = c10::Storage(c10::Storage::use_byte_size_t(), group_.flat_size() * size_of(compute_),
                          at::DataPtr(nullptr, device), /*allocator=*/nullptr, /*resizable=*/false);
  master_ = at::zeros({group_.shard_size()}, group_.members().front().parameter->wide_dtype());
  group_.cut_masters(master_);
  for (const FlatGroup::Member& member : group_.members()) {
    Parameter& parameter = *member.parameter;
    if (parameter.numel() > 0) {
      store_.put(number_, member.first * size_of(compute_), parameter.working.detach().flatten().view(at::kByte));
    }
    parameter.lay_into(storage_, member.first, stays);
  }
  if (resident_) bind(store_.kept(number_).mutable_data_ptr());
}

void TrainedSlab::bind(void* bytes) { storage_.set_data_ptr_noswap(at::DataPtr(bytes, store_.device())); }

at::Tensor& TrainedSlab::master() {
  MT_CHECK(master_.defined(), group_.layer(), ": the optimizer holds the masters");
  return master_;
}

void TrainedSlab::publish(const at::Tensor& own_shard, const StreamPoint& written) {
  at::NoGradGuard no_grad;
  if (group_.flat_size() == 0) return;
  if (same_shards_ && !resident_) {
    // Fetches wait for it, and nothing else does.
    store_.rewritten(number_, written);
    return;
  }
  written.hold_current();
  if (!own_.defined()) {
    const ByteRange range = store_.shard(number_);
    const at::Tensor whole = group_.gathered(own_shard).view(at::kByte);
    store_.kept(number_)
        .narrow(0, 0, range.count)
        .copy_(whole.narrow(0, range.first, range.count), /*non_blocking=*/true);
  } else if (!same_shards_) {
    group_.ranks().all_gather(store_.kept(number_).view(compute_), own_);
  }
  store_.rewritten(number_, StreamPoint::of_current(store_.device()));
}

void TrainedSlab::publish_masters() {
  at::NoGradGuard no_grad;
  at::Tensor own = own_;
  own.defined() ? own.copy_(master()) : own = master().to(compute_);
  publish(own, StreamPoint::of_current(store_.device()));
}

void TrainedSlab::use() {
  if (!resident_) bind(store_.use(number_).mutable_data_ptr());
}

void TrainedSlab::unbind() {
  if (!resident_) bind(nullptr);
}

void TrainedSlab::release() {
  if (resident_) return;
  unbind();
  store_.release(number_);
}

TrainedSlabs::TrainedSlabs(Mesh& mesh, const ShardGroups& shards, WeightStore& store, SlabTier tier)
    : mesh_(mesh), shards_(shards), store_(store), tier_(tier) {}

const TrainedSlabs::Slabs& TrainedSlabs::of_layer(LayerId layer) const {
  static const Slabs kNone;
  const auto found = slabs_.find(layer);
  return found != slabs_.end() ? found->second : kNone;
}

void TrainedSlabs::take(const std::vector<Parameter*>& parameters) {
  std::vector<Parameter*> weights;
  for (Parameter* parameter : parameters) {
    if (parameter->info().role == Role::kWeight && of(*parameter) == nullptr) weights.push_back(parameter);
  }
  for (FlatGroup& group : flat_groups(weights, mesh_)) {
    const LayerId layer = group.layer();
    const Replicas replicas = group.replicas();
    SlabSpec spec;
    spec.name = str(layer, ", trained");
    spec.lane = lane(replicas);
    Slabs& of_layer = slabs_[layer];
    const size_t place = of_layer.size();
    if (layer.is_block()) {
      spec.tier = tier_;
      spec.replicas = shard_group(shards_, replicas);
      spec.before_fetch = [this, layer, place] {
        if (finish_update_) finish_update_(*slabs_.at(layer)[place]);
      };
    }
    const bool stays = !layer.is_block() || (tier_ == SlabTier::kDevice && shards_.scope() == ShardScope::kNone);
    of_layer.push_back(std::make_unique<TrainedSlab>(std::move(group), store_, std::move(spec), stays));
    MT_CHECK(std::count_if(of_layer.begin(), of_layer.end(),
                           [&](const auto& slab) { return slab->group().replicas() == replicas; }) == 1 ||
                 of_layer.back()->is_resident(),
             layer, ": two slabs take turns in one lane at once");
  }
}

void TrainedSlabs::use(LayerId layer) {
  for (const auto& slab : of_layer(layer)) slab->use();
}

void TrainedSlabs::release(LayerId layer) {
  for (const auto& slab : of_layer(layer)) slab->release();
}

void TrainedSlabs::abandon() {
  for (const auto& [layer, of_layer] : slabs_) {
    for (const auto& slab : of_layer) slab->unbind();
  }
}

std::vector<int> TrainedSlabs::uses(LayerId layer) const {
  std::vector<int> numbers;
  for (const auto& slab : of_layer(layer)) {
    if (!slab->is_resident()) numbers.push_back(slab->number());
  }
  return numbers;
}

TrainedSlab* TrainedSlabs::of(const Parameter& parameter) {
  for (const auto& slab : of_layer(parameter.info().layer)) {
    for (const FlatGroup::Member& member : slab->group().members()) {
      if (member.parameter == &parameter) return slab.get();
    }
  }
  return nullptr;
}

std::vector<TrainedSlab*> TrainedSlabs::all() {
  std::vector<TrainedSlab*> slabs;
  for (const auto& [layer, of_layer] : slabs_) {
    for (const auto& slab : of_layer) slabs.push_back(slab.get());
  }
  return slabs;
}

std::vector<FlatGroup> TrainedSlabs::groups() {
  std::vector<FlatGroup> groups;
  for (TrainedSlab* slab : all()) groups.emplace_back(slab->group()).lies_in(*slab);
  return groups;
}

int64_t TrainedSlabs::kept_bytes() const {
  int64_t bytes = 0;
  for (const auto& [layer, of_layer] : slabs_) {
    for (const auto& slab : of_layer) bytes += slab->kept_bytes();
  }
  return bytes;
}

}  // namespace moetune
