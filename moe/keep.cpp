#include "moe/keep.h"

#include <algorithm>
#include <string_view>

#include "parallel/base/error.h"

namespace moetune {

KeptBlocks KeptBlocks::after(int64_t steps, int64_t blocks) {
  const auto level = [&](int64_t before) { return std::clamp<int64_t>(steps - before * blocks, 0, blocks); };
  return {level(0), level(1), level(2)};
}

Keep KeptBlocks::of(int64_t later) const {
  return later < all         ? Keep::kAll
         : later < experts   ? Keep::kExperts
         : later < attention ? Keep::kAttention
                             : Keep::kNothing;
}

std::string to_string(const KeptBlocks& kept) {
  std::string text;
  const auto add = [&](std::string_view what, int64_t count, int64_t more) {
    if (count > more) text += str(text.empty() ? "" : ", ", what, " of ", text.empty() ? "the last " : "", count);
  };
  add("all", kept.all, 0);
  add("experts", kept.experts, kept.all);
  add("attention", kept.attention, kept.experts);
  return text.empty() ? "nothing" : text + " blocks";
}

}  // namespace moetune
