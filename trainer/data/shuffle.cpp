#include "trainer/data/shuffle.h"

#include <algorithm>
#include <utility>

#include "parallel/base/splitmix64.h"

namespace moetune {

std::vector<std::int64_t> shuffled_order(std::int64_t count, std::uint64_t seed, std::int64_t epoch) {
  const std::uint64_t start = splitmix64_at(seed, static_cast<std::uint64_t>(epoch));
  std::vector<std::pair<std::uint64_t, std::int64_t>> keyed(static_cast<size_t>(count));
  for (std::int64_t i = 0; i < count; ++i) keyed[i] = {splitmix64_at(start, static_cast<std::uint64_t>(i)), i};
  std::sort(keyed.begin(), keyed.end());  // the keys are distinct: one order, whatever the sort
  std::vector<std::int64_t> order(keyed.size());
  std::transform(keyed.begin(), keyed.end(), order.begin(), [](const auto& entry) { return entry.second; });
  return order;
}

}  // namespace moetune
