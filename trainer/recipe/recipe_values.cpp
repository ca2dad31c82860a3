#include "trainer/recipe/recipe_values.h"

#include <algorithm>
#include <cctype>
#include <charconv>
#include <cmath>
#include <cstdio>
#include <iterator>
#include <limits>
#include <utility>

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

// Shortest text that reads back to the same double: 16.0, 0.001, 2.0e-4.
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

std::string write_bound(double bound) {
  const bool whole = bound == std::floor(bound) && std::fabs(bound) < 1e15;
  return whole ? std::to_string(static_cast<int64_t>(bound)) : write_number(bound);
}

bool contains(const Range& range, double number) {
  const bool above = range.above_min ? number > range.min : number >= range.min;
  const bool below = range.below_max ? number < range.max : number <= range.max;
  return above && below;
}

constexpr std::pair<const char*, KeepLayers::Kind> kKeepWords[] = {{"auto", KeepLayers::Kind::kAuto},
                                                                   {"none", KeepLayers::Kind::kNone},
                                                                   {"attention", KeepLayers::Kind::kAttention},
                                                                   {"experts", KeepLayers::Kind::kExperts},
                                                                   {"all", KeepLayers::Kind::kAll}};

constexpr const char* kByteUnits[] = {"B", "KiB", "MiB", "GiB", "TiB"};

/// "40GiB", "512MiB", "0B": a whole number and a power of 1024; nothing where it is none of these, or 2^63 and more.
std::optional<int64_t> parse_bytes(const std::string& text) {
  const size_t digits = text.find_first_not_of("0123456789");
  const auto unit = digits == std::string::npos
                        ? std::end(kByteUnits)
                        : std::find(std::begin(kByteUnits), std::end(kByteUnits), text.substr(digits));
  const std::optional<int64_t> amount = parse_integer(text.substr(0, digits));
  const int shift = static_cast<int>(10 * (unit - std::begin(kByteUnits)));
  if (unit == std::end(kByteUnits) || !amount || *amount > (std::numeric_limits<int64_t>::max() >> shift)) {
    return std::nullopt;
  }
  return *amount << shift;
}

ValueProblems problem(const YamlNode& node, const std::string& what, bool say_allowed = false) {
  if (node.kind == Kind::kInvalid) return {};  // already reported
  return {{&node, what, say_allowed}};
}

ValueProblems not_allowed(const YamlNode& node) { return problem(node, str(shown(node), " is not allowed"), true); }

bool is_plain(const YamlNode& node) { return node.kind == Kind::kScalar && !node.quoted; }

// Number is int64_t or double; `parse` its parser. A quoted number is text.
template <typename Number, typename Parse>
ValueProblems read_number(const YamlNode& node, const FieldSpec& spec, Number& value, Parse parse) {
  const auto number = is_plain(node) ? parse(node.text) : std::nullopt;
  if (number && contains(spec.range, static_cast<double>(*number))) {
    value = *number;
    return {};
  }
  if (node.kind == Kind::kScalar && node.quoted && parse(node.text)) {
    return problem(node, str("'", node.text, "' in quotes is text"), true);
  }
  return not_allowed(node);
}

bool is_word(const YamlNode& node, const char* word) { return is_plain(node) && node.text == word; }

// The word for an empty optional; `null` and `~` reach the tree as kNull.
bool is_empty_word(const YamlNode& node, const FieldSpec& spec) {
  return std::string(spec.empty_word) == "null" ? node.kind == Kind::kNull : is_word(node, spec.empty_word);
}

template <typename Value>
ValueProblems read_optional(const YamlNode& node, const FieldSpec& spec, std::optional<Value>& value) {
  if (is_empty_word(node, spec)) {
    value.reset();
    return {};
  }
  Value inner{};
  ValueProblems problems = read_value(node, spec, inner);
  if (problems.empty()) value = inner;
  return problems;
}

template <typename Value>
std::string write_optional(const std::optional<Value>& value, const FieldSpec& spec) {
  return value ? write_value(*value, spec) : spec.empty_word;
}

template <typename Items, typename Write>
std::string join(const Items& items, const char* separator, Write write) {
  std::string text;
  for (const auto& item : items) text += (text.empty() ? "" : separator) + write(item);
  return text;
}

std::string same(const std::string& text) { return text; }

}  // namespace

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

// bool

ValueProblems read_value(const YamlNode& node, const FieldSpec&, bool& value) {
  const std::optional<bool> boolean = is_plain(node) ? parse_boolean(node.text) : std::nullopt;
  if (!boolean) return not_allowed(node);
  value = *boolean;
  return {};
}
std::string write_value(const bool& value, const FieldSpec&) { return value ? "true" : "false"; }
std::string type_name(const bool&, const FieldSpec&) { return "true or false"; }
std::string type_limits(const bool&, const FieldSpec&) { return ""; }

// numbers

ValueProblems read_value(const YamlNode& node, const FieldSpec& spec, int64_t& value) {
  if (const auto boolean = spec.counts_true && is_plain(node) ? parse_boolean(node.text) : std::nullopt) {
    value = *boolean ? 1 : 0;
    return {};
  }
  return read_number(node, spec, value, parse_integer);
}
std::string write_value(const int64_t& value, const FieldSpec&) { return std::to_string(value); }
std::string type_name(const int64_t&, const FieldSpec&) { return "whole number"; }
std::string type_limits(const int64_t&, const FieldSpec& spec) { return range_limits(spec.range); }

ValueProblems read_value(const YamlNode& node, const FieldSpec& spec, double& value) {
  return read_number(node, spec, value, parse_number);
}
std::string write_value(const double& value, const FieldSpec&) { return write_number(value); }
std::string type_name(const double&, const FieldSpec&) { return "number"; }
std::string type_limits(const double&, const FieldSpec& spec) { return range_limits(spec.range); }

ValueProblems read_value(const YamlNode& node, const FieldSpec& spec, std::optional<int64_t>& value) {
  return read_optional(node, spec, value);
}
std::string write_value(const std::optional<int64_t>& value, const FieldSpec& spec) {
  return write_optional(value, spec);
}
std::string type_name(const std::optional<int64_t>&, const FieldSpec& spec) {
  return str(spec.empty_word, " or ", type_name(int64_t{}, spec));
}
std::string type_limits(const std::optional<int64_t>&, const FieldSpec& spec) { return type_limits(int64_t{}, spec); }

ValueProblems read_value(const YamlNode& node, const FieldSpec& spec, std::optional<double>& value) {
  return read_optional(node, spec, value);
}
std::string write_value(const std::optional<double>& value, const FieldSpec& spec) {
  return write_optional(value, spec);
}
std::string type_name(const std::optional<double>&, const FieldSpec& spec) {
  return str(spec.empty_word, " or ", type_name(double{}, spec));
}
std::string type_limits(const std::optional<double>&, const FieldSpec& spec) { return type_limits(double{}, spec); }

// text

ValueProblems read_value(const YamlNode& node, const FieldSpec& spec, std::string& value) {
  if (node.kind != Kind::kScalar || node.text.empty()) return not_allowed(node);
  if (spec.path && (node.text[0] == '~' || node.text.find('$') != std::string::npos)) {
    return problem(node, str(shown(node), " would not be expanded: a recipe knows neither ~ nor variables; ",
                             "write the path in full"));
  }
  value = node.text;
  return {};
}
std::string write_value(const std::string& value, const FieldSpec&) { return quote_yaml(value); }
std::string type_name(const std::string&, const FieldSpec& spec) { return spec.path ? "path" : "text"; }
std::string type_limits(const std::string&, const FieldSpec&) { return ""; }

ValueProblems read_value(const YamlNode& node, const FieldSpec& spec, std::optional<std::string>& value) {
  return read_optional(node, spec, value);
}
std::string write_value(const std::optional<std::string>& value, const FieldSpec& spec) {
  return write_optional(value, spec);
}
std::string type_name(const std::optional<std::string>&, const FieldSpec& spec) {
  return str(spec.empty_word, " or ", type_name(std::string{}, spec));
}
std::string type_limits(const std::optional<std::string>&, const FieldSpec& spec) {
  return type_limits(std::string{}, spec);
}

// path | {path, weight} | list of these

namespace {

ValueProblems read_entry(const YamlNode& node, const FieldSpec& spec, DataEntry& entry) {
  if (node.kind != Kind::kMap) return read_value(node, spec, entry.path);
  ValueProblems problems;
  const auto add = [&](ValueProblems found, const std::string& key, const std::string& allowed) {
    for (ValueProblem& p : found) {
      problems.push_back({p.node, str(key, ": ", p.what, p.say_allowed ? "; allowed: " + allowed : ""), false});
    }
  };
  const std::vector<std::string> keys =
      spec.weighted ? std::vector<std::string>{"path", "weight"} : std::vector<std::string>{"path"};
  bool has_path = false;
  for (const YamlEntry& part : node.entries) {
    if (part.key == "path") {
      has_path = true;
      add(read_value(part.value, spec, entry.path), "path", type_name(entry.path, spec));
    } else if (part.key == "weight" && spec.weighted) {
      add(read_value(part.value, spec, entry.weight), "weight", allowed_value(entry.weight, spec));
    } else if (part.key == "weight") {
      problems.push_back({&part.value, "held-out data has no weight: each document counts once", false});
    } else {
      problems.push_back({&part.value, str("unknown key ", shown(part.key), suggestion(part.key, keys)), false});
    }
  }
  if (!has_path) problems.push_back({&node, "an entry without 'path'", true});
  return problems;
}

}  // namespace

ValueProblems read_value(const YamlNode& node, const FieldSpec& spec, DataFiles& value) {
  DataFiles read;
  ValueProblems problems;
  const auto add = [&](const YamlNode& item) {
    read.entries.emplace_back();
    for (ValueProblem& p : read_entry(item, spec, read.entries.back())) problems.push_back(std::move(p));
  };
  if (node.kind == Kind::kList) {
    if (node.items.empty()) return not_allowed(node);
    for (const YamlNode& item : node.items) add(item);
  } else {
    add(node);
  }
  if (problems.empty()) value = read;
  return problems;
}
std::string write_value(const DataFiles& value, const FieldSpec&) {
  const auto write = [](const DataEntry& entry) {
    return entry.weight == 1.0 ? quote_yaml(entry.path)
                               : str("{path: ", quote_yaml(entry.path), ", weight: ", write_number(entry.weight), "}");
  };
  if (value.entries.size() == 1) return write(value.entries[0]);
  return str("[", join(value.entries, ", ", write), "]");
}
std::string type_name(const DataFiles&, const FieldSpec& spec) {
  return spec.weighted ? "path, {path, weight} or list of these" : "path or list of paths";
}
std::string type_limits(const DataFiles&, const FieldSpec& spec) {
  return spec.weighted ? str("(weight ", range_limits(spec.range), ")") : "";
}

ValueProblems read_value(const YamlNode& node, const FieldSpec& spec, std::optional<DataFiles>& value) {
  return read_optional(node, spec, value);
}
std::string write_value(const std::optional<DataFiles>& value, const FieldSpec& spec) {
  return write_optional(value, spec);
}
std::string type_name(const std::optional<DataFiles>&, const FieldSpec& spec) {
  return str(spec.empty_word, " or ", type_name(DataFiles{}, spec));
}
std::string type_limits(const std::optional<DataFiles>&, const FieldSpec& spec) {
  return type_limits(DataFiles{}, spec);
}

// auto | none | attention | experts | all | N

ValueProblems read_value(const YamlNode& node, const FieldSpec& spec, KeepLayers& value) {
  const auto word = std::find_if(std::begin(kKeepWords), std::end(kKeepWords),
                                 [&](const auto& entry) { return is_word(node, entry.first); });
  KeepLayers read{KeepLayers::Kind::kCount};
  if (word != std::end(kKeepWords)) {
    read.kind = word->second;
  } else if (!read_value(node, spec, read.num_layers).empty()) {
    return not_allowed(node);
  }
  value = read;
  return {};
}
std::string write_value(const KeepLayers& value, const FieldSpec& spec) {
  for (const auto& [word, kind] : kKeepWords) {
    if (kind == value.kind) return word;
  }
  return write_value(value.num_layers, spec);
}
std::string type_name(const KeepLayers& value, const FieldSpec& spec) {
  std::string words;
  for (const auto& [word, kind] : kKeepWords) words += str(words.empty() ? "" : ", ", word);
  return str(words, " or ", type_name(value.num_layers, spec));
}
std::string type_limits(const KeepLayers& value, const FieldSpec& spec) { return type_limits(value.num_layers, spec); }

// auto | none | all | 40GiB

ValueProblems read_value(const YamlNode& node, const FieldSpec&, OffloadFrozen& value) {
  if (!is_plain(node)) return not_allowed(node);
  const std::vector<std::string> words = {"auto", "none", "all"};
  const auto word = std::find(words.begin(), words.end(), node.text);
  if (word != words.end()) {
    value = {static_cast<OffloadFrozen::Kind>(word - words.begin()), 0};
    return {};
  }
  const std::optional<int64_t> bytes = parse_bytes(node.text);
  if (!bytes) return not_allowed(node);
  value = {OffloadFrozen::Kind::kBytes, *bytes};
  return {};
}
std::string write_value(const OffloadFrozen& value, const FieldSpec&) {
  switch (value.kind) {
    case OffloadFrozen::Kind::kAuto: return "auto";
    case OffloadFrozen::Kind::kNone: return "none";
    case OffloadFrozen::Kind::kAll: return "all";
    case OffloadFrozen::Kind::kBytes: break;
  }
  size_t unit = 0;
  int64_t amount = value.bytes;
  for (; unit + 1 < std::size(kByteUnits) && amount != 0 && amount % 1024 == 0; ++unit) amount /= 1024;
  return str(amount, kByteUnits[unit]);
}
std::string type_name(const OffloadFrozen&, const FieldSpec&) { return "auto, none, all or an amount such as 40GiB"; }
std::string type_limits(const OffloadFrozen&, const FieldSpec&) { return ""; }

// [a, b]

ValueProblems read_value(const YamlNode& node, const FieldSpec& spec, NumberPair& value) {
  if (node.kind != Kind::kList || node.items.size() != value.size()) return not_allowed(node);
  NumberPair read{};
  ValueProblems problems;
  for (size_t i = 0; i < read.size(); ++i) {
    for (ValueProblem& p : read_value(node.items[i], spec, read[i])) problems.push_back(std::move(p));
  }
  if (problems.empty()) value = read;
  return problems;
}
std::string write_value(const NumberPair& value, const FieldSpec&) {
  return str("[", join(value, ", ", write_number), "]");
}
std::string type_name(const NumberPair&, const FieldSpec&) { return "list of two numbers"; }
std::string type_limits(const NumberPair&, const FieldSpec& spec) { return str("each ", range_limits(spec.range)); }

// a list of whole numbers

ValueProblems read_value(const YamlNode& node, const FieldSpec& spec, Counts& value) {
  if (node.kind != Kind::kList) return not_allowed(node);
  Counts read(node.items.size());
  ValueProblems problems;
  for (size_t i = 0; i < read.size(); ++i) {
    for (ValueProblem& p : read_value(node.items[i], spec, read[i])) problems.push_back(std::move(p));
  }
  if (problems.empty()) value = read;
  return problems;
}
std::string write_value(const Counts& value, const FieldSpec&) {
  return str("[", join(value, ", ", [](int64_t count) { return std::to_string(count); }), "]");
}
std::string type_name(const Counts&, const FieldSpec&) { return "list of whole numbers"; }
std::string type_limits(const Counts&, const FieldSpec& spec) { return str("each ", range_limits(spec.range)); }

// a list of words

ValueProblems read_value(const YamlNode& node, const FieldSpec& spec, Words& value) {
  const bool any_word = spec.words.empty();
  if (node.kind != Kind::kList || (node.items.empty() && !any_word)) return not_allowed(node);
  Words read;
  ValueProblems problems;
  const auto add = [&](const YamlNode& item, const std::string& what) {
    for (ValueProblem& p : problem(item, what)) problems.push_back(std::move(p));
  };
  for (const YamlNode& item : node.items) {
    if (item.kind != Kind::kScalar) {
      add(item, str(shown(item), " is not a name", any_word ? "" : "; allowed: ", join_or(spec.words)));
    } else if (!any_word && std::find(spec.words.begin(), spec.words.end(), item.text) == spec.words.end()) {
      add(item, str("unknown name ", shown(item), suggestion(item.text, spec.words)));
    } else if (std::find(read.begin(), read.end(), item.text) != read.end()) {
      add(item, str(shown(item), " is listed twice"));
    } else {
      read.push_back(item.text);
    }
  }
  if (problems.empty()) value = read;
  return problems;
}
std::string write_value(const Words& value, const FieldSpec&) { return str("[", join(value, ", ", quote_yaml), "]"); }
std::string type_name(const Words&, const FieldSpec&) { return "list of names"; }
std::string type_limits(const Words&, const FieldSpec& spec) {
  return spec.words.empty() ? "" : str("among ", join_or(spec.words));
}

ValueProblems read_value(const YamlNode& node, const FieldSpec& spec, std::optional<Words>& value) {
  return read_optional(node, spec, value);
}
std::string write_value(const std::optional<Words>& value, const FieldSpec& spec) {
  return write_optional(value, spec);
}
std::string type_name(const std::optional<Words>&, const FieldSpec& spec) {
  return str(spec.empty_word, " or ", type_name(Words{}, spec));
}
std::string type_limits(const std::optional<Words>&, const FieldSpec& spec) { return type_limits(Words{}, spec); }

// {word: N}

ValueProblems read_value(const YamlNode& node, const FieldSpec& spec, WordCounts& value) {
  if (node.kind != Kind::kMap) return not_allowed(node);
  WordCounts read;
  ValueProblems problems;
  for (const YamlEntry& entry : node.entries) {
    if (std::find(spec.words.begin(), spec.words.end(), entry.key) == spec.words.end()) {
      problems.push_back(
          {&entry.value, str("unknown name ", shown(entry.key), suggestion(entry.key, spec.words)), false});
      continue;
    }
    int64_t& number = read[entry.key];
    for (const ValueProblem& p : read_value(entry.value, spec, number)) {
      problems.push_back({p.node, str(entry.key, ": ", p.what, "; allowed: ", allowed_value(number, spec)), false});
    }
  }
  if (problems.empty()) value = read;
  return problems;
}
std::string write_value(const WordCounts& value, const FieldSpec&) {
  return str("{", join(value, ", ", [](const auto& entry) { return str(quote_yaml(entry.first), ": ", entry.second); }),
             "}");
}
std::string type_name(const WordCounts&, const FieldSpec&) { return "map from names to whole numbers"; }
std::string type_limits(const WordCounts&, const FieldSpec& spec) {
  return str(range_limits(spec.range), ", names among ", join_or(spec.words));
}

// all | 10-20 | [0, 3, 10-20, mtp] | top 8

namespace {

/// "3" or "10-20", within the schema's range.
std::optional<NumberRange> parse_range(const std::string& text, const FieldSpec& spec) {
  const size_t dash = text.find('-');
  const std::optional<int64_t> first = parse_integer(text.substr(0, dash)),
                               last = dash == std::string::npos ? first : parse_integer(text.substr(dash + 1));
  if (!first || !last || *last < *first || !contains(spec.range, static_cast<double>(*first)) ||
      !contains(spec.range, static_cast<double>(*last))) {
    return std::nullopt;
  }
  return NumberRange{*first, *last};
}

/// Numbers and ranges of a list, or of a scalar; `take` has words that are none, and says whether it knows them.
template <typename Take>
ValueProblems read_ranges(const YamlNode& node, const FieldSpec& spec, std::vector<NumberRange>& ranges,
                          const Take& take) {
  std::vector<const YamlNode*> items;
  for (const YamlNode& item : node.items) items.push_back(&item);
  if (node.kind != Kind::kList) items = {&node};
  if (items.empty()) return not_allowed(node);
  ValueProblems problems;
  for (const YamlNode* const entry : items) {
    const YamlNode& item = *entry;
    const auto range = is_plain(item) ? parse_range(item.text, spec) : std::nullopt;
    if (!range && is_plain(item) && take(item.text)) continue;
    const bool twice = range && std::any_of(ranges.begin(), ranges.end(), [&](const NumberRange& other) {
                         return range->first <= other.last && other.first <= range->last;
                       });
    if (range && !twice) {
      ranges.push_back(*range);
      continue;
    }
    for (ValueProblem& p : twice ? problem(item, str(shown(item), " is listed twice")) : not_allowed(item)) {
      problems.push_back(std::move(p));
    }
  }
  return problems;
}

}  // namespace

ValueProblems read_value(const YamlNode& node, const FieldSpec& spec, LayerChoice& value) {
  if (is_word(node, "all")) {
    value = {};
    return {};
  }
  LayerChoice read;
  read.all = false;
  ValueProblems problems = read_ranges(node, spec, read.ranges, [&](const std::string& word) {
    const bool knows = word == "mtp" && !read.mtp;
    read.mtp |= knows;
    return knows;
  });
  if (problems.empty()) value = read;
  return problems;
}
std::string write_value(const LayerChoice& value, const FieldSpec&) {
  if (value.all) return "all";
  const std::string ranges = join(value.ranges, ", ", [](const NumberRange& range) { return to_string(range); });
  return str("[", ranges, value.mtp ? ranges.empty() ? "mtp" : ", mtp" : "", "]");
}
std::string type_name(const LayerChoice&, const FieldSpec&) { return "all, or numbers and ranges N-M, or mtp"; }
std::string type_limits(const LayerChoice&, const FieldSpec& spec) { return range_limits(spec.range); }

ValueProblems read_value(const YamlNode& node, const FieldSpec& spec, ExpertChoice& value) {
  constexpr std::string_view kTop = "top ";
  ExpertChoice read;
  if (is_plain(node) && node.text.starts_with(kTop)) {
    const std::optional<int64_t> top = parse_integer(node.text.substr(kTop.size()));
    if (!top || *top < 1 || !contains(spec.range, static_cast<double>(*top))) return not_allowed(node);
    read.kind = ExpertChoice::Kind::kTop;
    read.top = *top;
  } else if (!is_word(node, "all")) {
    read.kind = ExpertChoice::Kind::kListed;
    ValueProblems problems = read_ranges(node, spec, read.ranges, [](const std::string&) { return false; });
    if (!problems.empty()) return problems;
  }
  value = read;
  return {};
}
std::string write_value(const ExpertChoice& value, const FieldSpec&) {
  switch (value.kind) {
    case ExpertChoice::Kind::kAll: return "all";
    case ExpertChoice::Kind::kTop: return str("top ", value.top);
    case ExpertChoice::Kind::kListed: break;
  }
  return str("[", join(value.ranges, ", ", [](const NumberRange& range) { return to_string(range); }), "]");
}
std::string type_name(const ExpertChoice&, const FieldSpec&) { return "all, numbers and ranges N-M, or top N"; }
std::string type_limits(const ExpertChoice&, const FieldSpec& spec) { return range_limits(spec.range); }

// true | 17 | 0.5 | text

ValueProblems read_value(const YamlNode& node, const FieldSpec&, Scalar& value) {
  if (node.kind != Kind::kScalar) return not_allowed(node);
  value = node.text;
  if (node.quoted) return {};
  if (const auto boolean = parse_boolean(node.text)) {
    value = *boolean;
  } else if (const auto whole = parse_integer(node.text)) {
    value = *whole;
  } else if (const auto number = parse_number(node.text)) {
    value = *number;
  }
  return {};
}
std::string write_value(const Scalar& value, const FieldSpec& spec) {
  return std::visit([&](const auto& inner) { return write_value(inner, spec); }, value);
}
std::string type_name(const Scalar&, const FieldSpec&) { return "true, false, number or text"; }
std::string type_limits(const Scalar&, const FieldSpec&) { return ""; }

// {name: true | 17 | 0.5 | text}

ValueProblems read_value(const YamlNode& node, const FieldSpec& spec, ScalarMap& value) {
  if (node.kind != Kind::kMap) return not_allowed(node);
  ScalarMap read;
  ValueProblems problems;
  for (const YamlEntry& entry : node.entries) {
    Scalar& scalar = read[entry.key];
    for (const ValueProblem& p : read_value(entry.value, spec, scalar)) {
      problems.push_back({p.node, str(entry.key, ": ", p.what, "; allowed: ", allowed_value(scalar, spec)), false});
    }
  }
  if (problems.empty()) value = read;
  return problems;
}
std::string write_value(const ScalarMap& value, const FieldSpec& spec) {
  return str(
      "{",
      join(value, ", ",
           [&](const auto& entry) { return str(quote_yaml(entry.first), ": ", write_value(entry.second, spec)); }),
      "}");
}
std::string type_name(const ScalarMap&, const FieldSpec&) { return "map from names to true, false, numbers or text"; }
std::string type_limits(const ScalarMap&, const FieldSpec&) { return ""; }

}  // namespace moetune
