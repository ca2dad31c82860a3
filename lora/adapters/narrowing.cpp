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

StackExperts ExpertChoice::of_stack() const {
  switch (kind) {
    case Kind::kAll: return {};
    case Kind::kListed: return {listed()};
    case Kind::kTop: return {{}, top};
  }
  return {};
}

std::string to_string(const ExpertChoice& choice) {
  if (choice.kind == ExpertChoice::Kind::kAll) return "all";
  if (choice.kind == ExpertChoice::Kind::kTop) return "top " + std::to_string(choice.top);
  std::string text;
  for (const NumberRange& range : choice.ranges) text += (text.empty() ? "" : ", ") + to_string(range);
  return text;
}

int64_t StackExperts::count(int64_t total) const {
  if (top > 0) return std::min(top, total);
  return listed.empty() ? total : static_cast<int64_t>(listed.size());
}

int64_t StackExperts::most_of_rank(int64_t total, int64_t local) const {
  if (listed.empty()) return std::min(count(total), local);
  std::map<int64_t, int64_t> of_rank;
  int64_t most = 0;
  for (const int64_t expert : listed) most = std::max(most, ++of_rank[expert / local]);
  return most;
}

std::vector<int64_t> local_experts(const std::vector<int64_t>& chosen, int64_t first, int64_t count) {
  std::vector<int64_t> local;
  for (int64_t e = 0; e < count; ++e) {
    if (chosen.empty() || std::binary_search(chosen.begin(), chosen.end(), first + e)) local.push_back(e);
  }
  return local;
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
