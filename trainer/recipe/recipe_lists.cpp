// Values of a recipe that are lists, ranges and maps.
#include <algorithm>
#include <string_view>
#include <utility>
#include <variant>

#include "parallel/base/text.h"
#include "trainer/recipe/recipe_values.h"

namespace moetune {
namespace {

using Kind = YamlNode::Kind;

/// The items of a list into `read`, which has as many; `value` becomes that where all are right.
template <typename Numbers>
ValueProblems read_numbers(const YamlNode& node, const FieldSpec& spec, Numbers read, Numbers& value) {
  ValueProblems problems;
  for (size_t i = 0; i < read.size(); ++i) {
    for (ValueProblem& p : read_value(node.items[i], spec, read[i])) problems.push_back(std::move(p));
  }
  if (problems.empty()) value = std::move(read);
  return problems;
}

}  // namespace

// [a, b]

ValueProblems read_value(const YamlNode& node, const FieldSpec& spec, NumberPair& value) {
  if (node.kind != Kind::kList || node.items.size() != value.size()) return not_allowed(node);
  return read_numbers(node, spec, NumberPair{}, value);
}
std::string write_value(const NumberPair& value, const FieldSpec&) {
  return str("[", join(value, ", ", write_number), "]");
}
std::string type_name(const NumberPair&, const FieldSpec&) { return "list of two numbers"; }
std::string type_limits(const NumberPair&, const FieldSpec& spec) { return str("each ", range_limits(spec.range)); }

// a list of whole numbers

ValueProblems read_value(const YamlNode& node, const FieldSpec& spec, Counts& value) {
  if (node.kind != Kind::kList) return not_allowed(node);
  return read_numbers(node, spec, Counts(node.items.size()), value);
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
