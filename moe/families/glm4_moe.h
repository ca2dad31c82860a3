// GLM-4.5, GLM-4.5-Air, GLM-4.6 and 4.7 (glm4_moe): grouped-query attention that rotates the first half of a head's
// features, and DeepSeek-V3's router. GLM-4.7-Flash (glm4_moe_lite) has latent attention: deepseek_v3.h.
#pragma once

#include "moe/families/config_reader.h"

namespace moetune {

Blueprint glm4_moe(const ConfigReader& config);

}  // namespace moetune
