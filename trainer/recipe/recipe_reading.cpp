#include "trainer/recipe/recipe_reading.h"

#include <algorithm>
#include <cctype>
#include <charconv>
#include <cmath>
#include <cstdio>

#include "parallel/base/error.h"
#include "parallel/base/text.h"

namespace moetune {
namespace {

using Kind = YamlNode::Kind;

constexpr size_t kMaxShown = 60;

std::string format(double number, std::chars_format layout) {
  char text[64];
  return std::string(text, std::to_chars(text, text + sizeof text, number, layout).ptr);
}

std::string write_bound(double bound) {
  const bool whole = bound == std::floor(bound) && std::fabs(bound) < 1e15;
  return whole ? std::to_string(static_cast<int64_t>(bound)) : write_number(bound);
}

std::string same(const std::string& text) { return text; }

}  // namespace

std::string write_number(double number) {
  const double size = std::fabs(number);
  if (number == 0.0) return "0.0";
  if (size >= 1e-3 && size < 1e15) {
    const std::string text = format(number, std::chars_format::fixed);
    return text.find('.') == std::string::npos ? text + ".0" : text;
  }
  const std::string text = format(number, std::chars_format::scientific);
  const size_t e = text.find('e');
  const std::string mantissa = text.substr(0, e);
  return str(mantissa, mantissa.find('.') == std::string::npos ? ".0" : "", "e", std::stoi(text.substr(e + 1)));
}

bool contains(const Range& range, double number) {
  const bool above = range.above_min ? number > range.min : number >= range.min;
  const bool below = range.below_max ? number < range.max : number <= range.max;
  return above && below;
}

ValueProblems problem(const YamlNode& node, const std::string& what, bool say_allowed) {
  if (node.kind == Kind::kInvalid) return {};  // already reported
  return {{&node, what, say_allowed}};
}

ValueProblems not_allowed(const YamlNode& node) { return problem(node, str(shown(node), " is not allowed"), true); }

bool is_plain(const YamlNode& node) { return node.kind == Kind::kScalar && !node.quoted; }

bool is_word(const YamlNode& node, const char* word) { return is_plain(node) && node.text == word; }

// `null` and `~` reach the tree as kNull.
bool is_empty_word(const YamlNode& node, const FieldSpec& spec) {
  return std::string(spec.empty_word) == "null" ? node.kind == Kind::kNull : is_word(node, spec.empty_word);
}

std::string range_limits(const Range& range) {
  const bool has_min = std::isfinite(range.min);
  const bool has_max = std::isfinite(range.max);
  if (has_min && range.min == range.max) return str("equal to ", write_bound(range.min));
  if (has_min && has_max && !range.above_min && !range.below_max) {
    return str("from ", write_bound(range.min), " to ", write_bound(range.max));
  }
  std::string text;
  if (has_min) text += str(range.above_min ? "above " : "of at least ", write_bound(range.min));
  if (has_max) text += str(has_min ? " and " : "", range.below_max ? "below " : "at most ", write_bound(range.max));
  return text;
}

std::string shown(const std::string& text) {
  std::string safe;
  for (const unsigned char c : text.substr(0, kMaxShown)) {
    char escaped[8];
    std::snprintf(escaped, sizeof escaped, "\\x%02x", c);
    safe += c < 0x20 || c == 0x7f ? escaped : std::string(1, static_cast<char>(c));
  }
  return str("'", safe, text.size() > kMaxShown ? "...'" : "'");
}

std::string shown(const YamlNode& node) {
  switch (node.kind) {
    case Kind::kScalar: return shown(node.text);
    case Kind::kList: return "a list";
    case Kind::kMap: return "a map";
    case Kind::kNull:
    case Kind::kInvalid: return "null";
  }
  throw InternalError("a YAML node of no kind");
}

std::string nearest_name(const std::string& name, const std::vector<std::string>& names) {
  std::string best;
  if (name.size() > kMaxShown) return best;
  size_t best_distance = (name.size() + 1) / 3 + 1;  // about one slip in three letters
  for (const std::string& candidate : names) {
    const size_t distance = edit_distance(name, candidate);
    if (distance < best_distance) {
      best = candidate;
      best_distance = distance;
    }
  }
  return best;
}

std::string suggestion(const std::string& name, const std::vector<std::string>& names) {
  const std::string near = nearest_name(name, names);
  return near.empty() ? str("; allowed: ", join(names, ", ", same)) : str("; did you mean '", near, "'?");
}

std::string quote_yaml(const std::string& text) {
  const bool plain = !text.empty() && std::all_of(text.begin(), text.end(), [](unsigned char c) {
    return std::isalnum(c) || c == '_' || c == '.' || c == '/' || c == '-' || c == '+' || c == '=';
  }) && (std::isalpha(static_cast<unsigned char>(text[0])) || text[0] == '/');
  // words that some YAML reader takes for a boolean or for nothing
  static const std::vector<std::string> kTaken = {"null", "true", "false", "yes", "no", "on", "off", "y", "n"};
  std::string lower = text;
  std::transform(lower.begin(), lower.end(), lower.begin(), [](unsigned char c) { return std::tolower(c); });
  if (plain && std::find(kTaken.begin(), kTaken.end(), lower) == kTaken.end()) return text;
  std::string quoted = "\"";
  for (const unsigned char c : text) {
    char escaped[8];
    std::snprintf(escaped, sizeof escaped, "\\x%02x", c);
    if (c < 0x20 || c == 0x7f) {
      quoted += escaped;
    } else {
      if (c == '"' || c == '\\') quoted += '\\';
      quoted += static_cast<char>(c);
    }
  }
  return quoted + "\"";
}

std::string join_or(const std::vector<std::string>& words) {
  std::string text;
  for (size_t i = 0; i < words.size(); ++i) text += (i == 0 ? "" : i + 1 == words.size() ? " or " : ", ") + words[i];
  return text;
}

ValueProblems read_choice(const YamlNode& node, const std::vector<std::string>& words, size_t& index) {
  const auto found = node.kind == Kind::kScalar ? std::find(words.begin(), words.end(), node.text) : words.end();
  if (found == words.end()) return not_allowed(node);
  index = found - words.begin();
  return {};
}

}  // namespace moetune
