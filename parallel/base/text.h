// Text for messages: names from files made safe to print, and the names that someone may have meant.
//
//   throw UserError(str(path, ": no tensor ", in_quotes(name), "; nearest: ",
//                       list_in_quotes(nearest(name, names, 3))));
#pragma once

#include <cstddef>
#include <string>
#include <string_view>
#include <vector>

namespace moetune {

/// `text` in double quotes as a JSON string of ASCII: control and escape characters of a hostile file cannot reach the
/// terminal. Invalid UTF-8 is replaced; what is longer than 200 bytes is cut and ends in "...".
std::string in_quotes(std::string_view text);
/// The quoted words joined by ", ".
std::string list_in_quotes(const std::vector<std::string>& words);

/// Up to `count` of the candidates with the smallest edit distance (Levenshtein) to `word`, best first; ties keep the
/// order of the candidates.
std::vector<std::string> nearest(std::string_view word, const std::vector<std::string>& candidates, std::size_t count);

}  // namespace moetune
