#include "parallel/base/name_summary.h"

#include <algorithm>
#include <cstdint>
#include <iterator>
#include <map>
#include <set>

#include "parallel/base/error.h"

namespace moetune {
namespace {

struct Pattern {
  std::vector<std::string> texts;  // around the numbers
  std::vector<std::set<int64_t>> numbers;
  size_t count = 0;
};

bool is_number(const std::string& part) {
  return !part.empty() && part.size() < 10 && part.find_first_not_of("0123456789") == std::string::npos;
}

// "3-5, 9"
std::string ranges(const std::set<int64_t>& numbers) {
  std::string text;
  for (auto first = numbers.begin(); first != numbers.end();) {
    auto last = first, next = std::next(first);
    while (next != numbers.end() && *next == *last + 1) last = next++;
    text += str(text.empty() ? "" : ", ", *first, last == first ? "" : "-", last == first ? "" : std::to_string(*last));
    first = next;
  }
  return numbers.size() == 1 ? text : "{" + text + "}";
}

}  // namespace

std::vector<std::string> summarise_names(const std::vector<std::string>& names) {
  std::vector<std::string> order;
  std::map<std::string, Pattern> patterns;
  for (const std::string& name : names) {
    std::vector<std::string> texts(1);
    std::vector<int64_t> numbers;
    for (size_t begin = 0; begin <= name.size();) {
      const size_t end = std::min(name.find('.', begin), name.size());
      const std::string part = name.substr(begin, end - begin);
      const std::string dot = end < name.size() ? "." : "";
      if (is_number(part)) {
        numbers.push_back(std::stoll(part));
        texts.push_back(dot);
      } else {
        texts.back() += part + dot;
      }
      begin = end + 1;
    }
    std::string key;
    for (const std::string& text : texts) key += text + '\0';
    Pattern& pattern = patterns[key];
    if (pattern.count++ == 0) {
      order.push_back(key);
      pattern.texts = texts;
      pattern.numbers.resize(numbers.size());
    }
    for (size_t i = 0; i < numbers.size(); ++i) pattern.numbers[i].insert(numbers[i]);
  }
  std::vector<std::string> lines;
  for (const std::string& key : order) {
    const Pattern& pattern = patterns[key];
    std::string line = pattern.texts[0];
    size_t combinations = 1;
    for (size_t i = 0; i < pattern.numbers.size(); ++i) {
      line += ranges(pattern.numbers[i]) + pattern.texts[i + 1];
      combinations *= pattern.numbers[i].size();
    }
    lines.push_back(combinations == pattern.count ? line : str(line, " (", pattern.count, " names)"));
  }
  return lines;
}

}  // namespace moetune
