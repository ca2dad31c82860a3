// What the ranks of a mesh hold in shards and parts, put together: masters or gradients under their Hugging Face names.
//
//   std::map<std::string, at::Tensor> adapter = whole_tensors(partition, masters, mesh);
#pragma once

#include <map>
#include <string>
#include <vector>

#include "trainer/update/partition.h"

namespace moetune {

/// `shards`: this rank's, by group of the partition. Stacks over experts come as one tensor [E, ...] under the name
/// with '*'. On the CPU, those of all stages on every rank. Collective over the mesh.
std::map<std::string, at::Tensor> whole_tensors(const Partition& partition, const std::vector<at::Tensor>& shards,
                                                Mesh& mesh);

}  // namespace moetune
