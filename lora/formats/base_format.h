// How frozen linear weights are held.
#pragma once

#include <array>
#include <string_view>

#include "parallel/base/choice.h"

namespace moetune {

enum class BaseFormat { kNf4, kNf4Double, kBf16, kFp32 };
constexpr std::array<std::string_view, 4> words_of(BaseFormat) { return {"nf4", "nf4_double", "bf16", "fp32"}; }

constexpr bool is_quantised(BaseFormat format) {
  return format == BaseFormat::kNf4 || format == BaseFormat::kNf4Double;
}

}  // namespace moetune
