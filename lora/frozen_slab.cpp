#include "lora/frozen_slab.h"

#include <algorithm>

#include "parallel/base/error.h"
#include "parallel/weight_store.h"

namespace moetune {

void FrozenSlab::hold(FrozenWeight& weight, const std::string& name) {
  MT_CHECK(number_ < 0, name, " comes after its slab was closed");
  MT_CHECK(weight.shape().units == units_, name, " has ", weight.shape().units, " units, its slab ", units_);
  held_.push_back({&weight, name, record_bytes_});
  record_bytes_ += weight.shape().unit_bytes();
}

void FrozenSlab::close() {
  const SlabPlacement& placement = slabs_.placement_;
  const bool experts = kind_ == SlabKind::kExperts;
  const bool on_host = experts ? std::binary_search(placement.host_layers.begin(), placement.host_layers.end(), layer_) : placement.dense_on_host;
  number_ = slabs_.store_.add({str("layer ", layer_, experts ? " experts" : " dense"), bytes(), on_host ? SlabTier::kHost : SlabTier::kDevice,
                               experts ? 1 : 0, experts ? placement.expert_replicas : placement.dense_replicas});
}

const FrozenSlab::Held& FrozenSlab::held(const FrozenWeight& weight) const {
  const auto found = std::find_if(held_.begin(), held_.end(), [&](const Held& one) { return one.weight == &weight; });
  MT_CHECK(found != held_.end() && number_ >= 0, "a weight [", weight.shape().outputs, ", ", weight.shape().inputs, "] is not in this closed slab");
  return *found;
}

bool FrozenSlab::wants(const FrozenWeight& weight, int64_t unit) const {
  return slabs_.store_.owns(number_, {unit * record_bytes_ + held(weight).offset, weight.shape().unit_bytes()});
}

void FrozenSlab::set(const FrozenWeight& weight, int64_t unit, const at::Tensor& weight_OI) {
  MT_CHECK(unit >= 0 && unit < units_, "unit ", unit, " of ", units_);
  const int64_t first = unit * record_bytes_ + held(weight).offset;
  const std::vector<at::Tensor> packed = weight.pack(weight_OI);
  const std::vector<PackedPart> parts = weight.shape().parts();
  for (size_t i = 0; i < parts.size(); ++i) slabs_.store_.put(number_, first + parts[i].offset, packed[i].contiguous().view(at::kByte));
}

void FrozenSlab::use() {
  const at::Tensor bytes = slabs_.store_.use(number_);
  for (const Held& one : held_) one.weight->bind(bytes, one.offset, record_bytes_);
}

void FrozenSlab::release() {
  for (const Held& one : held_) one.weight->unbind();
  slabs_.store_.release(number_);
}

std::pair<int64_t, at::Tensor> FrozenSlab::kept() const {
  const ByteRange range = slabs_.store_.shard(number_);
  return {range.first, slabs_.store_.kept(number_).narrow(0, 0, range.count)};
}

bool FrozenSlab::first_copy() const { return kind_ == SlabKind::kExperts ? slabs_.placement_.first_expert_copy : slabs_.placement_.first_dense_copy; }

at::Device FrozenSlab::device() const { return slabs_.store_.device(); }

FrozenSlabs::FrozenSlabs(at::Device device) : own_store_(std::make_unique<WeightStore>(device)), store_(*own_store_) {}

FrozenSlabs::FrozenSlabs(WeightStore& store, SlabPlacement placement) : store_(store), placement_(std::move(placement)) {}

FrozenSlabs::~FrozenSlabs() = default;

FrozenSlab& FrozenSlabs::add(SlabKind kind, int64_t layer, int64_t units) {
  slabs_.push_back(FrozenSlab(*this, kind, layer, units));
  return slabs_.back();
}

int64_t FrozenSlabs::kept_bytes() const {
  int64_t bytes = 0;
  for (const FrozenSlab& slab : slabs_) bytes += slab.kept().second.numel();
  return bytes;
}

void FrozenSlabs::schedule(const std::vector<FrozenSlab*>& uses) {
  std::vector<int> numbers;
  for (const FrozenSlab* slab : uses) numbers.push_back(slab->number());
  store_.schedule(numbers);
}

}  // namespace moetune
