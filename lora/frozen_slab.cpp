#include "lora/frozen_slab.h"

#include <ATen/Parallel.h>

#include <algorithm>
#include <cstdio>
#include <optional>

#include "lora/adapters/adapter.h"
#include "lora/slab_cache.h"
#include "parallel/base/error.h"
#include "parallel/bytes/weight_store.h"
#include "parallel/comm/communicator.h"

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
  const bool on_host = experts ? std::binary_search(placement.host_layers.begin(), placement.host_layers.end(), layer_)
                               : placement.dense_on_host;
  number_ = slabs_.store_.add({str("layer ", layer_.number(), experts ? " experts" : " dense"), bytes(),
                               on_host ? SlabTier::kHost : SlabTier::kDevice, experts ? 1 : 0,
                               experts ? placement.expert_replicas : placement.dense_replicas});
}

const FrozenSlab::Held& FrozenSlab::held(const FrozenWeight& weight) const {
  const auto found = std::find_if(held_.begin(), held_.end(), [&](const Held& one) { return one.weight == &weight; });
  MT_CHECK(found != held_.end() && number_ >= 0, "a weight [", weight.shape().outputs, ", ", weight.shape().inputs,
           "] is not in this closed slab");
  return *found;
}

bool FrozenSlab::wants(const FrozenWeight& weight, int64_t unit) const {
  return slabs_.store_.owns(number_, {unit * record_bytes_ + held(weight).offset, weight.shape().unit_bytes()});
}

void FrozenSlab::set(const FrozenWeight& weight, int64_t unit, const at::Tensor& weight_OI) {
  keep(weight, unit, weight.pack(weight_OI));
}

void FrozenSlab::keep(const FrozenWeight& weight, int64_t unit, const std::vector<at::Tensor>& packed) {
  MT_CHECK(unit >= 0 && unit < units_, "unit ", unit, " of ", units_);
  const int64_t first = unit * record_bytes_ + held(weight).offset;
  const std::vector<at::Tensor> own = weight.held(packed);
  const std::vector<PackedPart> parts = weight.shape().parts();
  for (size_t i = 0; i < parts.size(); ++i) {
    slabs_.store_.put(number_, first + parts[i].offset, own[i].contiguous().view(at::kByte));
  }
}

std::string FrozenSlab::matrix_name(const Held& held, int64_t number) const {
  return kind_ == SlabKind::kExperts ? expert_name(held.name, number) : held.name;
}

std::unique_ptr<SlabFile> FrozenSlab::open_file() const {
  if (slabs_.cache_ == nullptr) return nullptr;
  std::vector<SlabMatrix> matrices;
  for (int64_t number = 0; number < of_.all; ++number) {
    for (const Held& one : held_) matrices.push_back({matrix_name(one, number), one.weight->shape().whole()});
  }
  char layer[16];
  std::snprintf(layer, sizeof layer, "%03d", static_cast<int>(layer_.number()));
  return slabs_.cache_->open(str("layer-", layer, kind_ == SlabKind::kExperts ? "-experts" : "-dense"),
                             std::move(matrices));
}

void FrozenSlab::fill(const MatrixReader& read) {
  MT_CHECK(of_.first + units_ <= of_.all, units_, " units from ", of_.first, " on of ", of_.all);
  std::vector<Matrix> wanted;
  for (int64_t unit = 0; unit < units_; ++unit) {
    for (size_t i = 0; i < held_.size(); ++i) {
      if (wants(*held_[i].weight, unit)) {
        wanted.push_back({&held_[i], unit, static_cast<size_t>(of_.first + unit) * held_.size() + i});
      }
    }
  }
  const std::unique_ptr<SlabFile> file = open_file();
  if (file != nullptr) recall(*file, wanted);
  for (const Matrix& matrix : wanted) {
    const FrozenWeight& weight = *matrix.held->weight;
    const auto packed = weight.pack(
        read(matrix_name(*matrix.held, of_.first + matrix.unit), {weight.shape().outputs, weight.shape().inputs}));
    keep(weight, matrix.unit, packed);
    if (file != nullptr) file->put(matrix.place, packed);
  }
}

/// Keeps what the file has of `wanted`, and leaves in it what the file lacks.
void FrozenSlab::recall(const SlabFile& file, std::vector<Matrix>& wanted) {
  // Read and verified a matrix a thread at a time: SHA-256 is slower than a good disk.
  const auto at_a_time = static_cast<size_t>(at::get_num_threads());
  std::vector<Matrix> missing;
  for (size_t first = 0; first < wanted.size(); first += at_a_time) {
    const auto count = static_cast<int64_t>(std::min(at_a_time, wanted.size() - first));
    std::vector<std::optional<SlabFile::Stored>> found(count);
    at::parallel_for(0, count, 1, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) found[i] = file.find(wanted[first + i].place);
    });
    for (int64_t i = 0; i < count; ++i) {
      const Matrix& matrix = wanted[first + i];
      if (found[i]) {
        keep(*matrix.held->weight, matrix.unit, found[i]->parts);
      } else {
        missing.push_back(matrix);
      }
    }
  }
  wanted = std::move(missing);
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

bool FrozenSlab::is_shared() const {
  const SlabPlacement& placement = slabs_.placement_;
  const Communicator* ranks = kind_ == SlabKind::kExperts ? placement.expert_replicas : placement.dense_replicas;
  return ranks != nullptr && ranks->size() > 1;
}

bool FrozenSlab::first_copy() const {
  return kind_ == SlabKind::kExperts ? slabs_.placement_.first_expert_copy : slabs_.placement_.first_dense_copy;
}

at::Device FrozenSlab::device() const { return slabs_.store_.device(); }

FrozenSlabs::FrozenSlabs(at::Device device) : own_store_(std::make_unique<WeightStore>(device)), store_(*own_store_) {}

FrozenSlabs::FrozenSlabs(WeightStore& store, SlabPlacement placement, SlabCache* cache)
    : store_(store), placement_(std::move(placement)), cache_(cache) {}

FrozenSlabs::~FrozenSlabs() = default;

FrozenSlab& FrozenSlabs::add(SlabKind kind, LayerId layer, int64_t units, SlabUnits of) {
  slabs_.push_back(FrozenSlab(*this, kind, layer, units, of));
  return slabs_.back();
}

int64_t FrozenSlabs::kept_bytes() const {
  int64_t bytes = 0;
  for (const FrozenSlab& slab : slabs_) bytes += slab.kept().second.numel();
  return bytes;
}

void FrozenSlabs::abandon() {
  for (FrozenSlab& slab : slabs_) {
    for (const FrozenSlab::Held& one : slab.held_) one.weight->unbind();
  }
  store_.abandon();
}

}  // namespace moetune
