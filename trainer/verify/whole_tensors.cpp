#include "trainer/verify/whole_tensors.h"

#include <ATen/ATen.h>

#include <sstream>

#include "parallel/base/error.h"
#include "parallel/comm/gathered_text.h"

namespace moetune {
namespace {

/// The whole of which the ranks of `group` hold parts: each puts its own into zeros, and they are summed.
at::Tensor put_together(const at::Tensor& own, int64_t dim, int64_t first, int64_t total, Communicator& group) {
  std::vector<int64_t> shape = own.sizes().vec();
  shape[dim] = total;
  at::Tensor whole = at::zeros(shape, own.options());
  whole.narrow(dim, first, own.size(dim)).copy_(own);
  group.all_reduce_sum(whole);
  return whole;
}

/// The tensors of all stages, on the ranks of each.
std::map<std::string, at::Tensor> of_all_stages(std::map<std::string, at::Tensor> own, Communicator& pp,
                                                at::TensorOptions options) {
  if (pp.size() == 1) return own;
  std::string names;
  for (const auto& [name, tensor] : own) {
    names += name;
    for (const int64_t size : tensor.sizes()) names += str(" ", size);
    names += "\n";
  }
  std::map<std::string, at::Tensor> all;
  const std::vector<std::string> texts = gathered_text(pp, names);
  for (int stage = 0; stage < pp.size(); ++stage) {
    std::istringstream lines(texts[stage]);
    for (std::string line; std::getline(lines, line);) {
      std::istringstream words(line);
      std::string name;
      words >> name;
      std::vector<int64_t> shape;
      for (int64_t size = 0; words >> size;) shape.push_back(size);
      at::Tensor tensor = at::empty(shape, options);
      if (stage == pp.rank()) tensor.copy_(own.at(name));
      pp.broadcast(tensor, stage);
      all[name] = tensor.cpu();
    }
  }
  return all;
}

}  // namespace

std::map<std::string, at::Tensor> whole_tensors(const Partition& partition, const std::vector<at::Tensor>& shards,
                                                Mesh& mesh) {
  std::map<std::string, at::Tensor> whole;
  for (size_t i = 0; i < shards.size(); ++i) {
    const FlatGroup& group = partition.groups()[i];
    const at::Tensor flat = group.gathered(shards[i]);
    for (const FlatGroup::Member& member : group.members()) {
      const ParameterInfo& info = member.parameter->info();
      at::Tensor tensor = FlatGroup::view(flat, member);
      if (!info.part.is_whole()) {
        tensor = put_together(tensor, info.part.dim, info.part.first, info.part.total, mesh.tp());
      }
      if (info.num_experts > 0) tensor = put_together(tensor, 0, info.first_expert, info.num_experts, mesh.ep());
      whole[info.name] = tensor.cpu().clone();
    }
  }
  return of_all_stages(std::move(whole), mesh.pp(),
                       at::TensorOptions(partition.wide_dtype()).device(partition.device()));
}

}  // namespace moetune
