// dots.llm1 (arXiv:2506.05767): grouped-query attention with normed heads, and DeepSeek-V3's router.
#pragma once

#include "moe/families/config_reader.h"

namespace moetune {

Blueprint dots1(const ConfigReader& config);

}  // namespace moetune
