// What the readers of a recipe's values share: problems, and text as it is read, shown and written.
//
//   if (!is_word(node, "auto")) return not_allowed(node);
#pragma once

#include <string>
#include <vector>

#include "trainer/recipe/recipe_schema.h"
#include "trainer/recipe/recipe_yaml.h"

namespace moetune {

struct ValueProblem {
  const YamlNode* node;  ///< the value, or the part of it, that is wrong
  std::string what;
  bool say_allowed = true;  ///< whoever reports it adds allowed_value of the whole value
};
using ValueProblems = std::vector<ValueProblem>;

/// The value as it was written, short enough for a message: 'abc', a list, null.
std::string shown(const YamlNode& node);
/// `text` in single quotes, cut when long, control characters escaped.
std::string shown(const std::string& text);
/// "from 1 to 1024"; empty for an interval without bounds.
std::string range_limits(const Range& range);
/// The one of `names` that `name` is probably a slip of; empty when none is near.
std::string nearest_name(const std::string& name, const std::vector<std::string>& names);
/// "; did you mean 'x'?" or, when none is near, "; allowed: x, y, z".
std::string suggestion(const std::string& name, const std::vector<std::string>& names);
/// `text` as a YAML scalar, in double quotes where a reader could take the plain form for something else.
std::string quote_yaml(const std::string& text);

/// Nothing where the node was reported already.
ValueProblems problem(const YamlNode& node, const std::string& what, bool say_allowed = false);
ValueProblems not_allowed(const YamlNode& node);
/// A scalar without quotes; this word.
bool is_plain(const YamlNode& node);
bool is_word(const YamlNode& node, const char* word);
/// The word for an empty optional.
bool is_empty_word(const YamlNode& node, const FieldSpec& spec);
bool contains(const Range& range, double number);
/// Shortest text that reads back to the same double: 16.0, 0.001, 2.0e-4.
std::string write_number(double number);

/// The index of the scalar of `node` in `words`, or the problem.
ValueProblems read_choice(const YamlNode& node, const std::vector<std::string>& words, size_t& index);
/// "a, b or c"
std::string join_or(const std::vector<std::string>& words);

/// The items' texts with a separator between them.
template <typename Items, typename Write>
std::string join(const Items& items, const char* separator, Write write) {
  std::string text;
  for (const auto& item : items) text += (text.empty() ? "" : separator) + write(item);
  return text;
}

}  // namespace moetune
