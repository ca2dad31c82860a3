#include "parallel/base/text.h"

#include <algorithm>
#include <cstdio>
#include <nlohmann/json.hpp>
#include <numeric>
#include <utility>

namespace moetune {
namespace {

struct Character {
  char32_t code;
  std::size_t num_bytes;  ///< 0: the byte begins no character
};

/// The character of UTF-8 (RFC 3629) that `text`, which is not empty, begins with.
Character first_character(std::string_view text) {
  const auto byte = [&](std::size_t i) { return static_cast<unsigned char>(text[i]); };
  const unsigned lead = byte(0);
  const std::size_t num_bytes = lead < 0x80 ? 1 : lead >> 5 == 6 ? 2 : lead >> 4 == 14 ? 3 : lead >> 3 == 30 ? 4 : 0;
  if (num_bytes == 0 || num_bytes > text.size()) return {lead, 0};
  char32_t code = num_bytes == 1 ? lead : lead & (0x7fu >> num_bytes);
  for (std::size_t i = 1; i < num_bytes; ++i) {
    if (byte(i) >> 6 != 2) return {lead, 0};
    code = code << 6 | (byte(i) & 0x3fu);
  }
  constexpr char32_t kSmallest[] = {0, 0, 0x80, 0x800, 0x10000};
  const bool surrogate = code >= 0xd800 && code < 0xe000;
  return {code, code < kSmallest[num_bytes] || code > 0x10ffff || surrogate ? 0 : num_bytes};
}

/// What a terminal or a reader of the log acts on instead of showing it: C0, C1, line separators, marks of direction.
bool acts(char32_t code) {
  return code < 0x20 || (code >= 0x7f && code < 0xa0) || code == 0x61c || code == 0x200e || code == 0x200f ||
         (code >= 0x2028 && code <= 0x202e) || (code >= 0x2066 && code <= 0x2069);
}

std::string escaped(std::string_view text, bool one_line) {
  std::string shown;
  shown.reserve(text.size());
  while (!text.empty()) {
    const Character next = first_character(text);
    const std::size_t taken = std::max<std::size_t>(1, next.num_bytes);
    char code[16];
    if (next.num_bytes == 0) {
      std::snprintf(code, sizeof code, "\\x%02x", static_cast<unsigned>(static_cast<unsigned char>(text[0])));
      shown += code;
    } else if (next.code == U'\n' || next.code == U'\t') {
      if (one_line) {
        shown += next.code == U'\n' ? "\\n" : "\\t";
      } else {
        shown += text[0];
      }
    } else if (acts(next.code)) {
      std::snprintf(code, sizeof code, "\\u%04x", static_cast<unsigned>(next.code));
      shown += code;
    } else {
      shown += text.substr(0, taken);
    }
    text.remove_prefix(taken);
  }
  return shown;
}

}  // namespace

std::string printable(std::string_view text) { return escaped(text, /*one_line=*/false); }
std::string printable_line(std::string_view text) { return escaped(text, /*one_line=*/true); }

std::size_t edit_distance(std::string_view a, std::string_view b) {
  // Three rows of the table d[i][j], the distance of the first i letters of a from the first j of b.
  std::vector<std::size_t> before(b.size() + 1), last(b.size() + 1), row(b.size() + 1);
  std::iota(row.begin(), row.end(), std::size_t{0});
  for (std::size_t i = 1; i <= a.size(); ++i) {
    std::swap(before, last);
    std::swap(last, row);
    row[0] = i;
    for (std::size_t j = 1; j <= b.size(); ++j) {
      row[j] = std::min({last[j] + 1, row[j - 1] + 1, last[j - 1] + (a[i - 1] == b[j - 1] ? 0 : 1)});
      const bool swapped = i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1];
      if (swapped) row[j] = std::min(row[j], before[j - 2] + 1);
    }
  }
  return row.back();
}

std::string in_quotes(std::string_view text) {
  constexpr std::size_t kLongest = 200;
  std::string shown(text.substr(0, kLongest));
  if (text.size() > kLongest) shown += "...";
  return nlohmann::json(shown).dump(-1, ' ', true, nlohmann::json::error_handler_t::replace);
}

std::string lower_case(std::string text) {
  for (char& letter : text) {
    if (letter >= 'A' && letter <= 'Z') letter = static_cast<char>(letter - 'A' + 'a');
  }
  return text;
}

std::string list_in_quotes(const std::vector<std::string>& words) {
  std::string joined;
  for (const std::string& word : words) joined += (joined.empty() ? "" : ", ") + in_quotes(word);
  return joined;
}

std::string number_list(const std::vector<std::int64_t>& numbers, std::size_t most, std::string_view before_last) {
  std::string text;
  for (std::size_t i = 0; i < std::min(numbers.size(), most); ++i) {
    text += i == 0 ? "" : i + 1 == numbers.size() ? before_last : ", ";
    text += std::to_string(numbers[i]);
  }
  return numbers.size() <= most ? text : text + " and " + std::to_string(numbers.size() - most) + " more";
}

std::string rank_list(const std::vector<std::int64_t>& ranks, std::size_t most, std::string_view before_last) {
  return (ranks.size() == 1 ? "rank " : "ranks ") + number_list(ranks, most, before_last);
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
