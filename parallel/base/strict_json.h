// JSON from files that nobody vouches for: headers, indices, configurations, manifests.
//
//   const nlohmann::json index = parse_strict_json(read_text_file(path), path, 8);
//   const nlohmann::json config = read_json_object(folder / "config.json");
//
// Stricter than the library's own parser where two readers could understand the same bytes differently.
#pragma once

#include <cstdint>
#include <nlohmann/json_fwd.hpp>
#include <string>
#include <string_view>

namespace moetune {

/// Parses the whole of `text`. UserError, with `where` in front, on bad syntax, invalid UTF-8, a key given twice in one
/// object, a NUL byte anywhere, or more than `max_depth` nested objects and arrays (a plain value has depth 0).
nlohmann::json parse_strict_json(std::string_view text, const std::string& where, int max_depth);

/// The JSON object in the regular file `path`, parsed strictly. UserError, with the path in front, for what cannot be
/// read, is no regular file, has more than kMaxJsonBytes or holds anything but an object.
nlohmann::json read_json_object(const std::string& path, int max_depth = 16);
constexpr std::uint64_t kMaxJsonBytes = 256 << 20;

/// A value of a strange file for messages: JSON in ASCII, cut where it is long.
std::string shown(const nlohmann::json& value);

}  // namespace moetune
