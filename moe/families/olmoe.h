// OLMoE-1B-7B (arXiv:2409.02060): norms over the features of all heads together, softmax over all experts.
#pragma once

#include "moe/families/config_reader.h"

namespace moetune {

Blueprint olmoe(const ConfigReader& config);

}  // namespace moetune
