#include "parallel/base/text.h"

#include <algorithm>
#include <nlohmann/json.hpp>
#include <numeric>
#include <utility>

namespace moetune {
namespace {

std::size_t edit_distance(std::string_view a, std::string_view b) {
  std::vector<std::size_t> row(b.size() + 1);
  std::iota(row.begin(), row.end(), std::size_t{0});
  for (std::size_t i = 0; i < a.size(); ++i) {
    std::size_t diagonal = row[0];
    row[0] = i + 1;
    for (std::size_t j = 0; j < b.size(); ++j) {
      const std::size_t substituted = diagonal + (a[i] == b[j] ? 0 : 1);
      diagonal = row[j + 1];
      row[j + 1] = std::min({substituted, row[j] + 1, row[j + 1] + 1});
    }
  }
  return row.back();
}

}  // namespace

std::string in_quotes(std::string_view text) {
  constexpr std::size_t kLongest = 200;
  std::string shown(text.substr(0, kLongest));
  if (text.size() > kLongest) shown += "...";
  return nlohmann::json(shown).dump(-1, ' ', true, nlohmann::json::error_handler_t::replace);
}

std::string list_in_quotes(const std::vector<std::string>& words) {
  std::string joined;
  for (const std::string& word : words) joined += (joined.empty() ? "" : ", ") + in_quotes(word);
  return joined;
}

std::vector<std::string> nearest(std::string_view word, const std::vector<std::string>& candidates, std::size_t count) {
  std::vector<std::pair<std::size_t, std::string>> best;  // distance and name, sorted
  for (const std::string& candidate : candidates) {
    // The difference in length is a lower bound: it spares the long way for almost all of a model's names.
    const std::size_t bound = std::max(word.size(), candidate.size()) - std::min(word.size(), candidate.size());
    if (best.size() == count && (count == 0 || bound >= best.back().first)) continue;
    const std::size_t distance = edit_distance(word, candidate);
    const auto place = std::upper_bound(best.begin(), best.end(), distance,
                                        [](std::size_t value, const auto& entry) { return value < entry.first; });
    best.insert(place, {distance, candidate});
    if (best.size() > count) best.pop_back();
  }
  std::vector<std::string> names;
  for (auto& [distance, name] : best) names.push_back(std::move(name));
  return names;
}

}  // namespace moetune
