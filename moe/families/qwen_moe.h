// Qwen1.5-MoE, Qwen2-MoE (qwen2_moe) and Qwen3-MoE (qwen3_moe).
#pragma once

#include "moe/families/config_reader.h"

namespace moetune {

Blueprint qwen2_moe(const ConfigReader& config);
Blueprint qwen3_moe(const ConfigReader& config);

}  // namespace moetune
