// Every tensor of a checkpoint of the DeepSeek-V3 family: its Hugging Face name, its shape, and how a run that does not
// train it holds it.
//
//   for (const CatalogTensor& tensor : tensor_catalog(config, /*with_mtp=*/false)) write(tensor.name, tensor.shape);
//
// build_model (model.h) asks its WeightSource for exactly these; a test compares the two.
#pragma once

#include <string>
#include <vector>

#include "moe/config.h"

namespace moetune {

enum class Held {
  kLinear,   ///< as a FrozenWeight in the run's base format
  kJoint,    ///< MTP's eh_proj: fp32 under base fp32, bf16 under every other
  kCompute,  ///< in the compute dtype: embedding, head, norms
  kStored,   ///< in the dtype it is stored in: the router
  kBias,     ///< the router's correction bias, in fp32
};

struct CatalogTensor {
  std::string name;
  std::vector<int64_t> shape;
  Held held = Held::kCompute;
  bool may_be_shared = false;  ///< embedding and head of the MTP module: absent where a checkpoint shares the trunk's
};

/// In the order of the layers, experts in theirs; the MTP module, as layer `num_layers`, last.
std::vector<CatalogTensor> tensor_catalog(const ModelConfig& config, bool with_mtp);

}  // namespace moetune
