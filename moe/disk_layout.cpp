#include "moe/disk_layout.h"

#include <algorithm>
#include <unordered_map>
#include <unordered_set>

#include "lora/adapters/adapter.h"
#include "parallel/base/error.h"

namespace moetune {
namespace {

std::string name_of(const TensorSpec& tensor, int64_t expert) {
  return tensor.stack > 0 ? expert_name(tensor.name, expert) : tensor.name;
}

/// "...mlp.experts." of "...mlp.experts.*.down_proj.weight".
std::string experts_path(const TensorSpec& tensor) { return tensor.name.substr(0, tensor.name.find('*')); }

class InDiskLayout final : public WeightSource {
 public:
  InDiskLayout(std::unique_ptr<WeightSource> source, const Blueprint& blueprint)
      : source_(std::move(source)), prefix_(blueprint.naming.prefix) {
    for (const TensorSpec& tensor : blueprint.tensors(blueprint.num_mtp_layers > 0)) {
      if (tensor.stack == 0) continue;
      for (int64_t expert = 0; expert < tensor.stack; ++expert) {
        DiskPlace place = disk_place(blueprint, tensor, expert);
        if (place.expert >= 0) places_.emplace(name_of(tensor, expert), std::move(place));
      }
    }
  }

  at::Tensor read(const std::string& name, at::IntArrayRef shape) override {
    const auto found = places_.find(name);
    if (found == places_.end()) return source_->read(prefix_ + name, shape);
    const DiskPlace& place = found->second;
    // Gate and up lie in one row, and are asked for one after the other.
    if (row_name_ != place.name || row_ != place.expert) {
      stored_ = source_->read_row(place.name, place.expert, place.shape);
      row_name_ = place.name;
      row_ = place.expert;
    }
    return place.part(stored_, shape);
  }
  at::Tensor read_row(const std::string& name, int64_t row, at::IntArrayRef shape) override {
    return source_->read_row(prefix_ + name, row, shape);
  }
  bool has(const std::string& name) const override {
    const auto found = places_.find(name);
    return source_->has(found == places_.end() ? prefix_ + name : found->second.name);
  }
  std::vector<StoredTensor> tensors() const override { return source_->tensors(); }
  void require_weight(const std::string& name) const override { source_->require_weight(name); }
  int64_t bytes_read() const override { return source_->bytes_read(); }
  std::string identity() const override { return source_->identity(); }

 private:
  std::unique_ptr<WeightSource> source_;
  std::string prefix_;
  std::unordered_map<std::string, DiskPlace> places_;  // of tensors that lie within others
  std::string row_name_;                               // the last row that was read
  int64_t row_ = -1;
  at::Tensor stored_;
};

}  // namespace

at::Tensor DiskPlace::part(const at::Tensor& stored, at::IntArrayRef shape) const {
  if (expert < 0) return stored;
  const at::Tensor outputs_first = transposed ? stored.t() : stored;
  return outputs_first.narrow(0, first_output, shape.at(0));
}

DiskPlace disk_place(const Blueprint& blueprint, const TensorSpec& tensor, int64_t expert) {
  DiskPlace place;
  const ExpertSpec::Layout layout = blueprint.experts.layout;
  if (tensor.stack == 0 || layout == ExpertSpec::Layout::kApart) {
    place.name = blueprint.naming.prefix + name_of(tensor, expert);
    place.shape = tensor.shape;
    return place;
  }
  const bool down = tensor.role == TensorRole::kDown;
  place.name = str(blueprint.naming.prefix, experts_path(tensor), down ? "down_proj" : "gate_up_proj",
                   tensor.bias ? "_bias" : "");
  place.expert = expert;
  const bool one_of_two = layout == ExpertSpec::Layout::kFused && !down;
  const int64_t outputs = tensor.shape[0] * (one_of_two ? 2 : 1);
  if (one_of_two && tensor.role == TensorRole::kUp) place.first_output = tensor.shape[0];
  if (tensor.bias) {
    place.shape = {tensor.stack, outputs};
  } else {
    place.transposed = true;
    place.shape = {tensor.stack, tensor.shape[1], outputs};
  }
  return place;
}

std::vector<DiskTensor> disk_tensors(const Blueprint& blueprint, bool with_mtp) {
  const std::vector<TensorSpec> tensors = blueprint.tensors(with_mtp);
  std::vector<DiskTensor> disk;
  std::unordered_map<std::string, size_t> number;  // of a tensor on disk by its name
  const auto add = [&](const TensorSpec& tensor, int64_t expert) {
    DiskPlace place = disk_place(blueprint, tensor, expert);
    const auto [found, added] = number.emplace(place.name, disk.size());
    if (added) {
      disk.push_back({place.name, place.shape, tensor.held, tensor.layer, tensor.may_be_shared, {}});
    }
    disk[found->second].pieces.push_back({name_of(tensor, expert), tensor.shape, std::move(place)});
  };
  for (size_t first = 0; first < tensors.size();) {
    // A layer's stacks lie expert by expert.
    size_t end = first + 1;
    if (tensors[first].stack > 0) {
      while (end < tensors.size() && tensors[end].stack > 0 && tensors[end].layer == tensors[first].layer) ++end;
    }
    for (int64_t expert = 0; expert < std::max<int64_t>(1, tensors[first].stack); ++expert) {
      for (size_t i = first; i < end; ++i) add(tensors[i], expert);
    }
    first = end;
  }
  return disk;
}

std::vector<std::string> unused_tensors(const WeightSource& source, const Blueprint& blueprint, bool with_mtp) {
  std::unordered_set<std::string> used;
  for (const DiskTensor& tensor : disk_tensors(blueprint, with_mtp)) used.insert(tensor.name);
  std::vector<std::string> unused;
  for (const StoredTensor& tensor : source.tensors()) {
    if (used.count(tensor.name) == 0) unused.push_back(tensor.name);
  }
  return unused;
}

std::unique_ptr<WeightSource> in_disk_layout(std::unique_ptr<WeightSource> source, const Blueprint& blueprint) {
  if (blueprint.naming.prefix.empty() && blueprint.experts.layout == ExpertSpec::Layout::kApart) return source;
  return std::make_unique<InDiskLayout>(std::move(source), blueprint);
}

}  // namespace moetune
