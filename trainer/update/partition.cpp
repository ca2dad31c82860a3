#include "trainer/update/partition.h"

#include <algorithm>
#include <map>
#include <set>
#include <tuple>

#include "parallel/device/host_memory.h"
#include "parallel/device/pinned_copy.h"

namespace moetune {

namespace {

constexpr int64_t kAligned = 128;  // numbers: 256 bytes in bf16, where wide loads may begin and the store cuts

UpdateRule rule_of(const Parameter& parameter) {
  return {parameter.info().role == Role::kAdapterB, parameter.info().decays};
}

}  // namespace

FlatGroup::FlatGroup(std::vector<Parameter*> parameters, Communicator& ranks) : ranks_(&ranks) {
  std::stable_sort(parameters.begin(), parameters.end(),
                   [](const Parameter* a, const Parameter* b) { return rule_of(*a) < rule_of(*b); });
  const Role role = parameters.front()->info().role;
  for (Parameter* parameter : parameters) {
    members_.push_back({parameter, numel_});
    numel_ += Partition::flat_numbers(parameter->numel(), role);
  }
  shard_size_ = Partition::shard_numbers(numel_, ranks.size(), role);
}

std::vector<FlatGroup::Piece> FlatGroup::own_pieces() const {
  std::vector<Piece> pieces;
  for (const Member& member : members_) {
    const int64_t begin = std::max(member.first, shard_begin()),
                  end = std::min(member.first + member.parameter->numel(), shard_begin() + shard_size_);
    if (begin < end) pieces.push_back({member.parameter, begin - member.first, begin - shard_begin(), end - begin});
  }
  return pieces;
}

void FlatGroup::cut_masters(const at::Tensor& shard) const {
  at::NoGradGuard no_grad;
  for (const Piece& piece : own_pieces()) {
    shard.narrow(0, piece.in_shard, piece.count)
        .copy_(piece.parameter->master().flatten().narrow(0, piece.first, piece.count));
  }
  for (const Member& member : members_) member.parameter->release_master();
}

std::vector<FlatGroup::Run> FlatGroup::own_runs() const {
  std::vector<Run> runs;
  for (const Piece& piece : own_pieces()) {
    const UpdateRule rule = rule_of(*piece.parameter);
    if (runs.empty() || runs.back().rule != rule) runs.push_back({rule, piece.in_shard, 0});
    runs.back().count = piece.in_shard + piece.count - runs.back().in_shard;  // zeros between tensors stay zeros
  }
  return runs;
}

at::Tensor FlatGroup::gathered(const at::Tensor& own_shard) const {
  const at::Device device = members_.front().parameter->working.device();
  if (own_shard.device() == device && (ranks_->size() == 1 || numel_ == 0)) return own_shard;
  at::Tensor flat = at::empty({flat_size()}, own_shard.options().device(device));
  at::Tensor own = flat.narrow(0, shard_begin(), shard_size_);
  copy_from_pinned(own, own_shard);
  if (ranks_->size() > 1 && numel_ > 0) ranks_->all_gather(flat, own);
  return flat;
}

at::Tensor FlatGroup::view(const at::Tensor& flat, const Member& member) {
  return flat.narrow(0, member.first, member.parameter->numel()).view(member.parameter->working.sizes());
}

int64_t Partition::flat_numbers(int64_t elements, Role role) {
  return role == Role::kWeight ? ceil_div(elements, kAligned) * kAligned : elements;
}

int64_t Partition::shard_numbers(int64_t elements, int64_t ranks, Role role) {
  return flat_numbers(ceil_div(elements, ranks), role);
}

std::vector<FlatGroup> flat_groups(const std::vector<Parameter*>& parameters, Mesh& mesh) {
  std::map<std::tuple<LayerId, Replicas, bool, bool>, std::vector<Parameter*>> alike;
  for (Parameter* parameter : parameters) {
    const ParameterInfo& info = parameter->info();
    alike[{info.layer, info.replicas, info.on_first_and_last_stage, info.role == Role::kWeight}].push_back(parameter);
  }
  std::vector<FlatGroup> groups;
  for (auto& [kind, members] : alike) {
    groups.emplace_back(std::move(members), replica_group(mesh, std::get<Replicas>(kind)));
  }
  return groups;
}

Partition::Partition(ParameterSet& parameters, Mesh& mesh, std::vector<FlatGroup> weights)
    : device_(parameters.device()), compute_(parameters.compute()), groups_(std::move(weights)) {
  std::set<const Parameter*> there;
  for (const FlatGroup& group : groups_) {
    for (const FlatGroup::Member& member : group.members()) there.insert(member.parameter);
  }
  std::vector<Parameter*> others;
  for (Parameter& parameter : parameters.all()) {
    if (!there.contains(&parameter)) others.push_back(&parameter);
  }
  for (FlatGroup& group : flat_groups(others, mesh)) groups_.push_back(std::move(group));
  std::stable_sort(groups_.begin(), groups_.end(),
                   [](const FlatGroup& a, const FlatGroup& b) { return a.layer() < b.layer(); });
}

std::vector<at::Tensor> Partition::shards(at::ScalarType type, SlabTier tier,
                                          const std::function<bool(const FlatGroup&)>& wanted) const {
  constexpr int64_t kLine = 64;  // bytes of a cache line: threads of neighbouring shards share none
  const int64_t size = static_cast<int64_t>(c10::elementSize(type));
  auto numbers = [&](const FlatGroup& group) { return !wanted || wanted(group) ? group.shard_size() : 0; };
  auto held = [&](const FlatGroup& group) { return ceil_div(numbers(group) * size, kLine) * kLine; };
  std::vector<at::Tensor> shards;
  if (tier == SlabTier::kDevice) {
    for (const FlatGroup& group : groups_) {
      shards.push_back(at::zeros({numbers(group)}, at::TensorOptions(type).device(device_)));
    }
    return shards;
  }
  int64_t bytes = 0;
  for (const FlatGroup& group : groups_) bytes += held(group);
  const at::Tensor memory = host_bytes(bytes, /*pin=*/device_.is_cuda());
  int64_t first = 0;
  for (const FlatGroup& group : groups_) {
    shards.push_back(memory.narrow(0, first, numbers(group) * size).view(type));
    first += held(group);
  }
  return shards;
}

std::vector<size_t> Partition::of_layer(LayerId layer) const {
  std::vector<size_t> found;
  for (size_t i = 0; i < groups_.size(); ++i) {
    if (groups_[i].layer() == layer) found.push_back(i);
  }
  return found;
}

}  // namespace moetune
