// DeepSeek-V2, V2-Lite and V2-Chat (report arXiv:2405.04434).
//
// The authors' code is followed where transformers 5.17 differs: norm_topk_prob normalises the weights, which are then
// not scaled; moe_layer_freq counts; YaRN with mscale and no mscale_all_dim scales cosines by mscale.
#pragma once

#include "moe/families/config_reader.h"

namespace moetune {

Blueprint deepseek_v2(const ConfigReader& config);

}  // namespace moetune
