#include "lora/adapters/narrowing.h"

#include <algorithm>
#include <numeric>
#include <set>

namespace moetune {

std::string to_string(const NumberRange& range) {
  const std::string first = std::to_string(range.first);
  return range.first == range.last ? first : first + "-" + std::to_string(range.last);
}

bool LayerChoice::holds(LayerId layer) const {
  if (all) return true;
  if (layer.is_mtp()) return mtp;
  return std::any_of(ranges.begin(), ranges.end(),
                     [&](const NumberRange& range) { return range.holds(layer.number()); });
}

std::vector<int64_t> ExpertChoice::listed() const {
  std::set<int64_t> numbers;
  for (const NumberRange& range : ranges) {
    for (int64_t number = range.first; number <= range.last; ++number) numbers.insert(number);
  }
  return {numbers.begin(), numbers.end()};
}

std::vector<int64_t> greatest_loads(const std::vector<int64_t>& load_E, int64_t count) {
  std::vector<int64_t> experts(load_E.size());
  std::iota(experts.begin(), experts.end(), 0);
  std::stable_sort(experts.begin(), experts.end(), [&](int64_t a, int64_t b) { return load_E[a] > load_E[b]; });
  experts.resize(std::min<size_t>(experts.size(), static_cast<size_t>(count)));
  std::sort(experts.begin(), experts.end());
  return experts;
}

}  // namespace moetune
