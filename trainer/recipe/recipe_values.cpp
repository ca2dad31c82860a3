#include "trainer/recipe/recipe_values.h"

#include <algorithm>
#include <iterator>
#include <limits>
#include <utility>

#include "parallel/base/error.h"
#include "parallel/base/text.h"

namespace moetune {
namespace {

using Kind = YamlNode::Kind;

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

}  // namespace

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

}  // namespace moetune
