// JSON from files that nobody vouches for: headers, indices, configurations, manifests.
//
//   const nlohmann::json index = parse_strict_json(read_text_file(path), path, 8);
//
// Stricter than the library's own parser where two readers could understand the same bytes differently.
#pragma once

#include <nlohmann/json_fwd.hpp>
#include <string>
#include <string_view>

namespace moetune {

/// Parses the whole of `text`. UserError, with `where` in front, on bad syntax, invalid UTF-8, a key given twice in one
/// object, a NUL byte anywhere, or more than `max_depth` nested objects and arrays (a plain value has depth 0).
nlohmann::json parse_strict_json(std::string_view text, const std::string& where, int max_depth);

}  // namespace moetune
