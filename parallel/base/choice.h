// Enumerations whose values have words: what a recipe says, a message shows and a file stores is one list beside the
// enumeration.
//
//   enum class ShardScope { kNone, kNode, kAll };
//   constexpr std::array<std::string_view, 3> words_of(ShardScope) { return {"none", "node", "all"}; }
//   to_string(ShardScope::kNode) == "node"
#pragma once

#include <string>
#include <string_view>
#include <vector>

namespace moetune {

/// An enumeration from 0 on, without gaps; words_of lists the words in the order of the values.
template <typename Choice>
concept ChoiceType = requires(Choice choice) { words_of(choice); };

template <ChoiceType Choice>
std::string to_string(Choice choice) {
  return std::string(words_of(choice).at(static_cast<size_t>(choice)));
}

template <ChoiceType Choice>
std::vector<std::string> choice_words(Choice choice) {
  const auto words = words_of(choice);
  return {words.begin(), words.end()};
}

}  // namespace moetune
