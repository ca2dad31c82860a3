#include "parallel/base/strict_json.h"

#include <algorithm>
#include <nlohmann/json.hpp>
#include <unordered_set>
#include <vector>

#include "parallel/base/error.h"
#include "parallel/base/files.h"
#include "parallel/base/text.h"

namespace moetune {

nlohmann::json parse_strict_json(std::string_view text, const std::string& where, int max_depth) {
  using nlohmann::json;
  // The library takes a NUL outside of strings for the end of the input and would ignore whatever follows it.
  if (const auto nul = text.find('\0'); nul != std::string_view::npos) {
    throw UserError(str(where, ": byte ", nul, " of the JSON text is NUL, which JSON does not allow"));
  }
  std::vector<std::unordered_set<std::string>> keys;  // of the objects that are open
  const auto check = [&](int depth, json::parse_event_t event, json& parsed) {
    switch (event) {
      case json::parse_event_t::object_start: keys.emplace_back(); [[fallthrough]];
      case json::parse_event_t::array_start:
        if (depth >= max_depth) {
          throw UserError(str(where, ": JSON nested deeper than the ", max_depth, " levels allowed here"));
        }
        break;
      case json::parse_event_t::object_end: keys.pop_back(); break;
      case json::parse_event_t::key:
        if (!keys.back().insert(parsed.get_ref<const std::string&>()).second) {
          throw UserError(
              str(where, ": key ", in_quotes(parsed.get_ref<const std::string&>()), " is given twice in one object"));
        }
        break;
      default: break;
    }
    return true;
  };
  try {
    return json::parse(text.begin(), text.end(), check);
  } catch (const json::out_of_range& error) {
    // The library says which number is too large, but not where it stands.
    const std::string what = error.what();
    const std::size_t open = what.find('\''), close = what.rfind('\'');
    const std::string number = open < close ? what.substr(open + 1, close - open - 1) : "";
    const std::size_t at = number.empty() ? std::string_view::npos : text.find(number);
    if (at == std::string_view::npos) throw UserError(str(where, ": not valid JSON: ", what));
    const std::string_view before = text.substr(0, at);
    throw UserError(str(where, ": not valid JSON: at line ", 1 + std::count(before.begin(), before.end(), '\n'),
                        ", column ", at - (before.rfind('\n') + 1) + 1, ": the number ", number.substr(0, 40),
                        number.size() > 40 ? "..." : "", " is too large"));
  } catch (const json::exception& error) {
    // What it read last may be as long as the file.
    constexpr std::size_t kMost = 300;
    const std::string what = error.what();
    throw UserError(str(where, ": not valid JSON: ", what.substr(0, kMost), what.size() > kMost ? "..." : ""));
  }
}

nlohmann::json read_json_object(const std::string& path, int max_depth) {
  const InputFile file(path);
  if (file.size() > kMaxJsonBytes) {
    throw UserError(str(path, ": ", file.size(), " bytes; a JSON file here has at most ", kMaxJsonBytes));
  }
  std::string text(file.size(), '\0');
  file.read(0, text.data(), text.size());
  nlohmann::json object = parse_strict_json(text, path, max_depth);
  if (!object.is_object()) throw UserError(str(path, ": is not a JSON object but ", shown(object)));
  return object;
}

std::string shown(const nlohmann::json& value) {
  constexpr std::size_t kMost = 80;
  const std::string text = value.dump(-1, ' ', /*ensure_ascii=*/true, nlohmann::json::error_handler_t::replace);
  return text.size() <= kMost ? text : text.substr(0, kMost) + "...";
}

}  // namespace moetune
