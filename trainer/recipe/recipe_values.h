// The types of value that a recipe knows: how each is read, written, and described. One set of four functions per type:
//
//   ValueProblems read_value(node, spec, value)       sets `value`, or leaves it alone and says what is wrong
//   std::string write_value(value, spec)              YAML on one line that read_value accepts
//   std::string type_name(value, spec)                "whole number", "auto or whole number"; only value's type matters
//   std::string type_limits(value, spec)              "from 1 to 1024"; empty when the type says all
//
//   allowed_value(value, spec) == "whole number from 1 to 1024"
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "trainer/recipe/recipe_reading.h"

namespace moetune {

#define MT_RECIPE_VALUE(Type)                                                         \
  ValueProblems read_value(const YamlNode& node, const FieldSpec& spec, Type& value); \
  std::string write_value(const Type& value, const FieldSpec& spec);                  \
  std::string type_name(const Type& value, const FieldSpec& spec);                    \
  std::string type_limits(const Type& value, const FieldSpec& spec);
MT_RECIPE_VALUE(bool)
MT_RECIPE_VALUE(int64_t)
MT_RECIPE_VALUE(double)
MT_RECIPE_VALUE(std::string)
MT_RECIPE_VALUE(KeepLayers)
MT_RECIPE_VALUE(OffloadFrozen)
using NumberPair = std::array<double, 2>;
MT_RECIPE_VALUE(NumberPair)
using Counts = std::vector<int64_t>;
MT_RECIPE_VALUE(Counts)
using Words = std::vector<std::string>;
MT_RECIPE_VALUE(Words)
using WordCounts = std::map<std::string, int64_t>;
MT_RECIPE_VALUE(WordCounts)
MT_RECIPE_VALUE(LayerChoice)
MT_RECIPE_VALUE(ExpertChoice)
MT_RECIPE_VALUE(Scalar)
MT_RECIPE_VALUE(ScalarMap)
MT_RECIPE_VALUE(DataFiles)
#undef MT_RECIPE_VALUE

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

// What may be empty: the schema's word for that, or what the inner type reads.

template <typename Value>
ValueProblems read_value(const YamlNode& node, const FieldSpec& spec, std::optional<Value>& value) {
  if (is_empty_word(node, spec)) {
    value.reset();
    return {};
  }
  Value inner{};
  ValueProblems problems = read_value(node, spec, inner);
  if (problems.empty()) value = inner;
  return problems;
}
template <typename Value>
std::string write_value(const std::optional<Value>& value, const FieldSpec& spec) {
  return value ? write_value(*value, spec) : spec.empty_word;
}
template <typename Value>
std::string type_name(const std::optional<Value>&, const FieldSpec& spec) {
  return spec.empty_word + (" or " + type_name(Value{}, spec));
}
template <typename Value>
std::string type_limits(const std::optional<Value>&, const FieldSpec& spec) {
  return type_limits(Value{}, spec);
}

template <typename Value>
std::string allowed_value(const Value& value, const FieldSpec& spec) {
  const std::string limits = type_limits(value, spec);
  return type_name(value, spec) + (limits.empty() ? "" : " " + limits);
}

}  // namespace moetune
