// Mixtral 8x7B and 8x22B (arXiv:2401.04088): the softmax of the two best logits; names of the classic checkpoints.
#pragma once

#include "moe/families/config_reader.h"

namespace moetune {

Blueprint mixtral(const ConfigReader& config);
/// What the classic checkpoints call their experts' parts.
Naming mixtral_names();

}  // namespace moetune
