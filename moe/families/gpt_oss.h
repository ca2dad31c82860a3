// gpt-oss-20b and 120b: biases everywhere, attention sinks, every other layer within a window, experts whose gate and
// up lie interleaved, in bf16 or as MXFP4 blocks.
#pragma once

#include "moe/families/config_reader.h"

namespace moetune {

Blueprint gpt_oss(const ConfigReader& config);

}  // namespace moetune
