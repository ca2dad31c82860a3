// The types of value that a recipe knows: how each is read, written, and described. One set of four functions per type:
//
//   ValueProblems read_value(node, spec, value)       sets `value`, or leaves it alone and says what is wrong
//   std::string write_value(value, spec)              YAML on one line that read_value accepts
//   std::string type_name(value, spec)                "whole number", "auto or whole number"; only value's type matters
//   std::string type_limits(value, spec)              "from 1 to 1024"; empty when the type says all
//
//   allowed_value(value, spec) == "whole number from 1 to 1024"
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

#define MT_RECIPE_VALUE(Type)                                                         \
  ValueProblems read_value(const YamlNode& node, const FieldSpec& spec, Type& value); \
  std::string write_value(const Type& value, const FieldSpec& spec);                  \
  std::string type_name(const Type& value, const FieldSpec& spec);                    \
  std::string type_limits(const Type& value, const FieldSpec& spec);
MT_RECIPE_VALUE(bool)
MT_RECIPE_VALUE(int64_t)
MT_RECIPE_VALUE(double)
MT_RECIPE_VALUE(std::string)
MT_RECIPE_VALUE(std::optional<int64_t>)
MT_RECIPE_VALUE(std::optional<double>)
MT_RECIPE_VALUE(std::optional<std::string>)
MT_RECIPE_VALUE(KeepLayers)
MT_RECIPE_VALUE(OffloadFrozen)
using NumberPair = std::array<double, 2>;
MT_RECIPE_VALUE(NumberPair)
using Counts = std::vector<int64_t>;
MT_RECIPE_VALUE(Counts)
using Words = std::vector<std::string>;
MT_RECIPE_VALUE(Words)
MT_RECIPE_VALUE(std::optional<Words>)
using WordCounts = std::map<std::string, int64_t>;
MT_RECIPE_VALUE(WordCounts)
MT_RECIPE_VALUE(LayerChoice)
MT_RECIPE_VALUE(ExpertChoice)
MT_RECIPE_VALUE(Scalar)
MT_RECIPE_VALUE(ScalarMap)
MT_RECIPE_VALUE(DataFiles)
MT_RECIPE_VALUE(std::optional<DataFiles>)
#undef MT_RECIPE_VALUE

/// The index of the scalar of `node` in `words`, or the problem.
ValueProblems read_choice(const YamlNode& node, const std::vector<std::string>& words, size_t& index);
/// "a, b or c"
std::string join_or(const std::vector<std::string>& words);

template <ChoiceType Choice>
ValueProblems read_value(const YamlNode& node, const FieldSpec&, Choice& value) {
  size_t index = static_cast<size_t>(value);
  ValueProblems problems = read_choice(node, choice_words(value), index);
  value = static_cast<Choice>(index);
  return problems;
}
template <ChoiceType Choice>
std::string write_value(const Choice& value, const FieldSpec&) {
  return to_string(value);
}
template <ChoiceType Choice>
std::string type_name(const Choice& value, const FieldSpec&) {
  return join_or(choice_words(value));
}
template <ChoiceType Choice>
std::string type_limits(const Choice&, const FieldSpec&) {
  return "";
}

template <typename Value>
std::string allowed_value(const Value& value, const FieldSpec& spec) {
  const std::string limits = type_limits(value, spec);
  return type_name(value, spec) + (limits.empty() ? "" : " " + limits);
}

}  // namespace moetune
