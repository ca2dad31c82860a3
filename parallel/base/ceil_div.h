// How many pieces of a size it takes: ceil_div(65, 64) == 2.
#pragma once

#include <cstdint>

namespace moetune {

/// a / b rounded up, for a >= 0 and b > 0.
constexpr int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

}  // namespace moetune
