// MiniMax-M2: norms over the features of all heads together, part of a head's features rotated, sigmoid scores with a
// correction bias; names like Mixtral's.
#pragma once

#include "moe/families/config_reader.h"

namespace moetune {

Blueprint minimax_m2(const ConfigReader& config);

}  // namespace moetune
