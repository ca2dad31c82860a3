#include "parallel/base/strict_json.h"

#include <nlohmann/json.hpp>
#include <unordered_set>
#include <vector>

#include "parallel/base/error.h"
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
  } catch (const json::exception& error) {
    throw UserError(str(where, ": not valid JSON: ", error.what()));
  }
}

}  // namespace moetune
