#include "trainer/data/shuffle.h"

#include <algorithm>
#include <utility>

namespace moetune {

std::uint64_t splitmix64_at(std::uint64_t start, std::uint64_t index) {
  std::uint64_t z = start + (index + 1) * 0x9e3779b97f4a7c15ULL;
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ULL;
  z = (z ^ (z >> 27)) * 0x94d049bb133111ebULL;
  return z ^ (z >> 31);
}

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
