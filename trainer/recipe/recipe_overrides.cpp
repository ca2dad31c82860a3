#include "trainer/recipe/recipe_overrides.h"

#include <algorithm>
#include <set>

#include "parallel/base/error.h"
#include "trainer/recipe/recipe_values.h"

namespace moetune {
namespace {

using Kind = YamlNode::Kind;

YamlEntry* find_entry(YamlNode& map, const std::string& key) {
  const auto found =
      std::find_if(map.entries.begin(), map.entries.end(), [&](const YamlEntry& e) { return e.key == key; });
  return found == map.entries.end() ? nullptr : &*found;
}

void forget_places(YamlNode& node) {
  node.line = node.column = 0;
  for (YamlNode& item : node.items) forget_places(item);
  for (YamlEntry& entry : node.entries) {
    entry.line = entry.column = 0;
    forget_places(entry.value);
  }
}

// Text is taken as it is, so that a path needs no quotes; lists, maps and quoted text are YAML.
YamlNode override_value(const std::string& text, const std::string& key, Mistakes& mistakes) {
  YamlNode node;
  if (text == "null" || text == "~") return node;
  if (std::string("[{\"'").find(text[0]) == std::string::npos) {
    node.kind = Kind::kScalar;
    node.text = text;
    return node;
  }
  YamlDocument document = parse_yaml(text);
  for (const YamlMistake& mistake : document.mistakes) {
    mistakes.on_command_line(str(key, ": ", shown(text), ": ", mistake.what));
  }
  forget_places(document.root);
  return document.root;
}

// Splits at dots, but not behind the name of a value: the rest of adapter.ranks.experts.up_proj is one key of a map.
std::vector<std::string> split_key(const std::string& name, const std::vector<std::string>& keys) {
  std::vector<std::string> parts;
  size_t begin = 0;
  while (true) {
    const bool in_value = begin > 0 && std::find(keys.begin(), keys.end(), name.substr(0, begin - 1)) != keys.end();
    const size_t dot = in_value ? std::string::npos : name.find('.', begin);
    parts.push_back(name.substr(begin, dot - begin));
    if (dot == std::string::npos) return parts;
    begin = dot + 1;
  }
}

// Whether `name` is a value of the schema, a section of it, or a key inside a value that is a map.
bool is_schema_name(const std::string& name, const std::vector<std::string>& keys) {
  return std::any_of(keys.begin(), keys.end(), [&](const std::string& key) {
    return key == name || key.rfind(name + ".", 0) == 0 || name.rfind(key + ".", 0) == 0;
  });
}

void apply_override(const std::string& text, const std::vector<std::string>& keys, YamlNode& root,
                    std::set<std::string>& done, Mistakes& mistakes) {
  const size_t equals = text.find('=');
  const std::string name = text.substr(0, equals);
  const std::vector<std::string> parts = split_key(name, keys);
  if (equals == std::string::npos || std::find(parts.begin(), parts.end(), "") != parts.end()) {
    mistakes.on_command_line(str(shown(text), " is not of the form key.sub=value"));
    return;
  }
  if (!done.insert(name).second) {
    mistakes.on_command_line(str(name, ": given twice"));
    return;
  }
  const auto inner = done.lower_bound(name + ".");
  if (inner != done.end() && inner->starts_with(name + ".")) {
    mistakes.on_command_line(str(*inner, ": given twice, the second time in ", name, "; give ", name, " before it"));
    return;
  }
  YamlNode* map = &root;
  std::string walked;
  for (size_t i = 0; i + 1 < parts.size(); ++i) {
    walked = joined(walked, parts[i]);
    YamlEntry* entry = find_entry(*map, parts[i]);
    if (entry == nullptr) {
      map->entries.push_back({parts[i], 0, 0, {}});
      entry = &map->entries.back();
      entry->value.kind = Kind::kMap;
    }
    map = &entry->value;
    if (map->kind == Kind::kInvalid) return;
    if (map->kind != Kind::kMap) {
      mistakes.on_command_line(str(name, ": ", walked, " is ", shown(*map), " and has no keys"));
      return;
    }
    // a map that is one value has one origin, and this is the last to touch it
    if (std::find(keys.begin(), keys.end(), walked) != keys.end()) map->line = map->column = 0;
  }
  const std::string value = text.substr(equals + 1);
  YamlEntry* entry = find_entry(*map, parts.back());
  if (value.empty() && entry != nullptr) {
    map->entries.erase(map->entries.begin() + (entry - map->entries.data()));
    return;
  }
  if (value.empty() && is_schema_name(name, keys)) return;
  if (entry == nullptr) {
    map->entries.push_back({parts.back(), 0, 0, {}});
    entry = &map->entries.back();
  }
  entry->line = entry->column = 0;
  entry->value = override_value(value, name, mistakes);
}

}  // namespace

void apply_overrides(const std::vector<std::string>& overrides, const std::vector<std::string>& keys, YamlNode& root,
                     Mistakes& mistakes) {
  std::set<std::string> done;
  for (const std::string& text : overrides) apply_override(text, keys, root, done, mistakes);
}

}  // namespace moetune
