// Among which of the ranks that would hold copies of a frozen weight it is sharded.
#pragma once

#include <array>
#include <string_view>

#include "parallel/base/choice.h"

namespace moetune {

enum class ShardScope { kNone, kNode, kAll };
constexpr std::array<std::string_view, 3> words_of(ShardScope) { return {"none", "node", "all"}; }

}  // namespace moetune
