// Every tensor of a checkpoint that a run uses: its Hugging Face name, its shape, and how a run that does not train it
// holds it.
//
//   for (const DiskTensor& tensor : disk_tensors(blueprint, /*with_mtp=*/false)) write(tensor.name, tensor.shape);
//
// build_model (model.h) asks its WeightSource for exactly these; a test compares the two.
#pragma once

#include <string>
#include <vector>

#include "moe/blueprint.h"

namespace moetune {

struct DiskTensor {
  std::string name;
  std::vector<int64_t> shape;
  Held held = Held::kCompute;
  LayerId layer;
  bool may_be_shared = false;  ///< embedding and head of the MTP module: absent where a checkpoint shares the trunk's
};

/// In the order of the layers, experts in theirs; the MTP module, as layer `num_layers`, last.
std::vector<DiskTensor> disk_tensors(const Blueprint& blueprint, bool with_mtp);

}  // namespace moetune
