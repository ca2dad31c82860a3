#include "tests/fuzz/mutate.h"

#include <algorithm>
#include <array>
#include <cstring>
#include <vector>

#include <nlohmann/json.hpp>

namespace moetune {
namespace {

using Json = nlohmann::ordered_json;

template <typename Items>
const auto& any_of(const Items& items, Dice& dice) {
  return items[dice.below(std::size(items))];
}

std::string changed_bytes(std::string bytes, Dice& dice) {
  const size_t at = dice.below(bytes.size() + 1), length = 1 + dice.below(dice.one_in(4) ? 4096 : 8);
  switch (dice.below(7)) {
    case 0: return bytes.substr(0, at);
    case 1:
      if (at < bytes.size()) bytes[at] = static_cast<char>(bytes[at] ^ (1 << dice.below(8)));
      return bytes;
    case 2:
      if (at < bytes.size()) bytes[at] = static_cast<char>(dice.next());
      return bytes;
    case 3: return bytes.erase(std::min(at, bytes.size()), length);
    case 4: return bytes.insert(at, bytes.substr(dice.below(bytes.size() + 1), length));
    case 5: {
      std::string noise(length, '\0');
      for (char& c : noise) c = static_cast<char>(dice.next());
      return bytes.insert(at, noise);
    }
    default: return bytes + bytes.substr(0, length);
  }
}

/// A value that has the wrong type, the wrong sign or the wrong size wherever it stands.
Json hostile(Dice& dice) {
  static const std::vector<Json> kValues = {nullptr,
                                            true,
                                            false,
                                            "",
                                            "1e9",
                                            "none",
                                            "\x1b[31mred",
                                            "../../../etc/passwd",
                                            "/",
                                            "NaN",
                                            "\xef\xbf\xbf",
                                            std::string(300, 'x'),
                                            0,
                                            1,
                                            -1,
                                            2,
                                            3,
                                            127,
                                            128,
                                            255,
                                            256,
                                            65536,
                                            2147483647,
                                            2147483648u,
                                            4294967295u,
                                            4294967296ll,
                                            -2147483649ll,
                                            9223372036854775807ll,
                                            18446744073709551615ull,
                                            1e308,
                                            -1e308,
                                            1e-308,
                                            0.5,
                                            -0.0,
                                            Json::array(),
                                            Json::object(),
                                            Json::array({0}),
                                            Json::array({-1, -1}),
                                            Json::array({1ll << 40, 1ll << 40}),
                                            Json::object({{"a", 1}})};
  if (dice.one_in(30)) {
    Json deep = 1;
    for (int i = 0; i < 300; ++i) deep = Json::array({deep});
    return deep;
  }
  return any_of(kValues, dice);
}

/// All values below `root`, `root` first.
void collect(Json& value, std::vector<Json*>& values) {
  values.push_back(&value);
  if (value.is_structured()) {
    for (Json& child : value) collect(child, values);
  }
}

void change_json(Json& root, Dice& dice) {
  std::vector<Json*> values;
  collect(root, values);
  Json& value = *any_of(values, dice);
  const std::vector<Json*> containers = [&] {
    std::vector<Json*> found;
    std::copy_if(values.begin(), values.end(), std::back_inserter(found), [](Json* v) { return v->is_object(); });
    return found;
  }();
  switch (dice.below(8)) {
    case 0:
    case 1:
    case 2: value = hostile(dice); return;
    case 3:
      if (value.is_number_integer()) {
        const int64_t number = value.get<int64_t>();
        value = static_cast<int64_t>(static_cast<uint64_t>(number) + dice.below(5) - 2);
      } else {
        value = hostile(dice);
      }
      return;
    case 4: value = Json(*any_of(values, dice)); return;
    case 5:
      if (value.is_number()) value = value.dump();  // a number as text
      else if (value.is_string()) value = value.get<std::string>() + std::string(1, static_cast<char>(dice.below(128)));
      return;
    default: break;
  }
  if (containers.empty()) return;
  Json& object = *any_of(containers, dice);
  if (object.empty()) return;
  auto member = object.begin();
  std::advance(member, static_cast<std::ptrdiff_t>(dice.below(object.size())));
  if (dice.one_in(2)) {
    object.erase(member);
  } else {
    const std::string name = member.key() + (dice.one_in(2) ? "_" : "\n");
    object[name] = Json(member.value());
  }
}

std::string changed_json(const std::string& text, Dice& dice) {
  Json json = Json::parse(text, nullptr, false);
  if (json.is_discarded()) return changed_bytes(text, dice);
  change_json(json, dice);
  std::string changed = json.dump(-1, ' ', false, Json::error_handler_t::replace);
  if (dice.one_in(12)) {  // a key twice
    const size_t brace = changed.find('{');
    const size_t comma = changed.find(',');
    if (brace != std::string::npos && comma != std::string::npos && comma > brace) {
      changed.insert(comma, "," + changed.substr(brace + 1, comma - brace - 1));
    }
  }
  return changed;
}

/// The header stays of the length that the first eight bytes say, unless the damage is there.
std::string changed_safetensors(const std::string& bytes, Dice& dice) {
  uint64_t length = 0;
  if (bytes.size() < sizeof length) return changed_bytes(bytes, dice);
  std::memcpy(&length, bytes.data(), sizeof length);
  if (length > bytes.size() - sizeof length || dice.one_in(4)) return changed_bytes(bytes, dice);
  if (dice.one_in(8)) {
    static constexpr std::array<uint64_t, 6> kLengths = {0, 1, 100'000'001, 1ull << 40, ~0ull, (1ull << 63) - 1};
    const uint64_t wrong = any_of(kLengths, dice);
    std::string changed = bytes;
    std::memcpy(changed.data(), &wrong, sizeof wrong);
    return changed;
  }
  const std::string header = changed_json(bytes.substr(sizeof length, length), dice);
  length = header.size();
  std::string changed(sizeof length, '\0');
  std::memcpy(changed.data(), &length, sizeof length);
  return changed + header + bytes.substr(std::min<uint64_t>(bytes.size(), sizeof length + length));
}

std::vector<std::string> lines_of(const std::string& text) {
  std::vector<std::string> lines;
  size_t begin = 0;
  for (size_t end; (end = text.find('\n', begin)) != std::string::npos; begin = end + 1) {
    lines.push_back(text.substr(begin, end - begin));
  }
  if (begin < text.size()) lines.push_back(text.substr(begin));
  return lines;
}

std::string joined(const std::vector<std::string>& lines) {
  std::string text;
  for (const std::string& line : lines) text += line + "\n";
  return text;
}

std::string changed_jsonl(const std::string& text, Dice& dice) {
  std::vector<std::string> lines = lines_of(text);
  if (lines.empty() || dice.one_in(6)) return changed_bytes(text, dice);
  std::string& line = lines[dice.below(lines.size())];
  line = changed_json(line, dice);
  return joined(lines);
}

std::string changed_yaml(const std::string& text, Dice& dice) {
  static const std::vector<std::string> kTokens = {
      "&a ",  "*a",   "!!python/object ",   "[",     "]",   "{",    "}",    "- ", ": ",   "\t",    "'",  "\"",
      "|",    ">",    "%YAML 1.2\n",        "---\n", "? ",  "<<: ", "null", "~",  "0x10", "1e400", "-1", "nan",
      ".inf", "\xff", std::string("\0", 1), "40GiB", "auto"};
  std::vector<std::string> lines = lines_of(text);
  if (lines.empty()) return changed_bytes(text, dice);
  const size_t at = dice.below(lines.size());
  std::string& line = lines[at];
  switch (dice.below(7)) {
    case 0: return changed_bytes(text, dice);
    case 1: line.insert(dice.below(line.size() + 1), any_of(kTokens, dice)); break;
    case 2: lines.insert(lines.begin() + static_cast<std::ptrdiff_t>(at), line); break;
    case 3: lines.erase(lines.begin() + static_cast<std::ptrdiff_t>(at)); break;
    case 4: line.insert(0, dice.below(5), ' '); break;
    case 5: std::swap(line, lines[dice.below(lines.size())]); break;
    default: {
      const size_t colon = line.find(": ");
      if (colon != std::string::npos) {
        line = line.substr(0, colon + 2) + (dice.one_in(3)
                                                ? any_of(kTokens, dice)
                                                : hostile(dice).dump(-1, ' ', true, Json::error_handler_t::replace));
      }
    }
  }
  return joined(lines);
}

bool ends_in(const std::string& text, const char* ending) {
  const size_t length = std::strlen(ending);
  return text.size() >= length && text.compare(text.size() - length, length, ending) == 0;
}

}  // namespace

std::string mutated(const std::string& valid, const std::string& file, Dice& dice) {
  std::string bytes = valid;
  for (size_t changes = 1 + dice.below(4); changes > 0; --changes) {
    if (ends_in(file, ".jsonl")) bytes = changed_jsonl(bytes, dice);
    else if (ends_in(file, ".json")) bytes = dice.one_in(5) ? changed_bytes(bytes, dice) : changed_json(bytes, dice);
    else if (ends_in(file, ".yaml")) bytes = changed_yaml(bytes, dice);
    else if (ends_in(file, ".safetensors")) bytes = changed_safetensors(bytes, dice);
    else bytes = changed_bytes(bytes, dice);
  }
  return bytes;
}

}  // namespace moetune
