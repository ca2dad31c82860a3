// The text model of Llama-4 Scout and Maverick, alone (llama4_text) or in the multimodal checkpoint (llama4), whose
// vision tensors are skipped.
#pragma once

#include "moe/families/config_reader.h"

namespace moetune {

Blueprint llama4_text(const ConfigReader& config);
Blueprint llama4(const ConfigReader& config);

}  // namespace moetune
