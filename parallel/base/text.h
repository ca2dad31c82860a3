// Text for messages: names from files made safe to print, and the names that someone may have meant.
//
//   throw UserError(str(path, ": no tensor ", in_quotes(name), "; nearest: ",
//                       list_in_quotes(nearest(name, names, 3))));
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace moetune {

/// `text` in double quotes as a JSON string of ASCII: control and escape characters of a hostile file cannot reach the
/// terminal. Invalid UTF-8 is replaced; what is longer than 200 bytes is cut and ends in "...".
std::string in_quotes(std::string_view text);
/// `text` as a terminal may have it: control and escape characters, those that turn the direction of writing, and what
/// is no UTF-8 become \u001b or \xff. Line ends and tabs stay. All that the program prints passes here once, where it
/// leaves (parallel/base/log.h, trainer/main.cpp).
std::string printable(std::string_view text);
/// The same in one line: line ends and tabs become \n and \t. For paths, which may hold any byte.
std::string printable_line(std::string_view text);

/// ASCII letters in lower case.
std::string lower_case(std::string text);

/// The quoted words joined by ", ".
std::string list_in_quotes(const std::vector<std::string>& words);

/// "0, 1 and 2", "0, 1 and 62 more": at most `most` of them. `before_last` stands before the last one of a list that is
/// not cut.
std::string number_list(const std::vector<std::int64_t>& numbers, std::size_t most,
                        std::string_view before_last = " and ");
/// "rank 3", "ranks 0, 1 and 2".
std::string rank_list(const std::vector<std::int64_t>& ranks, std::size_t most, std::string_view before_last = " and ");

/// Edits that make `b` of `a`: insert, delete or replace a character, or swap two neighbours (optimal string
/// alignment).
std::size_t edit_distance(std::string_view a, std::string_view b);
/// Up to `count` of the candidates with the smallest edit distance to `word`, best first; ties keep the
/// order of the candidates.
std::vector<std::string> nearest(std::string_view word, const std::vector<std::string>& candidates, std::size_t count);

}  // namespace moetune
