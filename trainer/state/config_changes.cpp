#include "trainer/state/config_changes.h"

#include <map>
#include <set>

#include <nlohmann/json.hpp>

#include "moe/families/family.h"
#include "parallel/base/error.h"

namespace moetune {
namespace {

using nlohmann::json;

void list_values(const json& value, const std::string& key, std::map<std::string, json>& values) {
  if (value.is_null()) return;  // the same as an absent one
  if (!value.is_object()) {
    values[key] = value;
    return;
  }
  for (const auto& [name, member] : value.items()) list_values(member, key.empty() ? name : key + "." + name, values);
}

std::map<std::string, json> values_of(const json& config) {
  std::map<std::string, json> values;
  list_values(config, "", values);
  return values;
}

json parsed(const std::string& text, const std::string& where) {
  json config = json::parse(text, nullptr, false);
  if (!config.is_object()) throw UserError(str(where, ": is not a JSON object"));
  return config;
}

bool same_model(const json& then, const json& now, const std::string& where) {
  Blueprint before = parse_blueprint(then, where + " of the checkpoint");
  const Blueprint after = parse_blueprint(now, where);
  before.max_positions = after.max_positions;
  before.fp8_blocks = after.fp8_blocks;
  return before == after;
}

std::string shown(const std::map<std::string, json>& values, const std::string& key) {
  const auto found = values.find(key);
  if (found == values.end()) return "absent";
  const std::string text = found->second.dump(-1, ' ', true, json::error_handler_t::replace);
  return text.size() > 80 ? text.substr(0, 80) + "..." : text;
}

}  // namespace

std::vector<ConfigChange> config_changes(const std::string& then, const std::string& now, const std::string& where) {
  const json then_config = parsed(then, where + " of the checkpoint"), now_config = parsed(now, where);
  if (same_model(then_config, now_config, where)) return {};
  const std::map<std::string, json> before = values_of(then_config), after = values_of(now_config);
  std::set<std::string> keys;
  for (const auto& [key, value] : before) keys.insert(key);
  for (const auto& [key, value] : after) keys.insert(key);
  std::vector<ConfigChange> changes;
  for (const std::string& key : keys) {
    const auto a = before.find(key), b = after.find(key);
    if (a != before.end() && b != after.end() && a->second == b->second) continue;
    changes.push_back({key, shown(before, key), shown(after, key)});
  }
  return changes;
}

}  // namespace moetune
