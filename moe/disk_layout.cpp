#include "moe/disk_layout.h"

#include "lora/adapters/adapter.h"

namespace moetune {

std::vector<DiskTensor> disk_tensors(const Blueprint& blueprint, bool with_mtp) {
  const std::vector<TensorSpec> tensors = blueprint.tensors(with_mtp);
  std::vector<DiskTensor> disk;
  for (size_t first = 0; first < tensors.size();) {
    // A layer's stacks lie expert by expert.
    size_t end = first + 1;
    if (tensors[first].stack > 0) {
      while (end < tensors.size() && tensors[end].stack > 0 && tensors[end].layer == tensors[first].layer) ++end;
    }
    for (int64_t expert = 0; expert < std::max<int64_t>(1, tensors[first].stack); ++expert) {
      for (size_t i = first; i < end; ++i) {
        const TensorSpec& tensor = tensors[i];
        disk.push_back({tensor.stack > 0 ? expert_name(tensor.name, expert) : tensor.name, tensor.shape, tensor.held,
                        tensor.layer, tensor.may_be_shared});
      }
    }
    first = end;
  }
  return disk;
}

}  // namespace moetune
