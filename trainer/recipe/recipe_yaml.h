// The YAML that a recipe may be written in: maps, lists and scalars, and nothing that surprises. Parsed event by event
// into a small tree that remembers where everything stands.
//
//   const YamlDocument document = parse_yaml(text);
//   for (const YamlMistake& mistake : document.mistakes) ...          // all of them; the tree holds what could be read
//   for (const YamlEntry& entry : document.root.entries) ... entry.key, entry.value.line
//   std::optional<int64_t> rank = parse_integer(node.text);
//
// Anchors, aliases, tags, merge keys, duplicate keys and further documents are mistakes: an alias lets 400 bytes unfold
// to millions of nodes, and of two equal keys readers disagree which holds. Scalars stay text: whether `010`, `yes` or
// `1_000` is a number is decided here and not by the library, for which they are 8, true and an error.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

namespace moetune {

constexpr size_t kMaxYamlBytes = 1 << 20;
constexpr size_t kMaxYamlDepth = 32;

struct YamlEntry;

/// One value. `line` and `column` count from 1; both are 0 for a value that stands in no file.
struct YamlNode {
  enum class Kind { kNull, kScalar, kList, kMap, kInvalid };  ///< kInvalid: a mistake has been recorded for it
  Kind kind = Kind::kNull;
  std::string text;     ///< of a scalar
  bool quoted = false;  ///< a scalar in quotes, or a block scalar
  std::vector<YamlNode> items;
  std::vector<YamlEntry> entries;  ///< in the order of the file; keys differ
  int line = 0;
  int column = 0;
};

struct YamlEntry {
  std::string key;
  int line = 0;
  int column = 0;
  YamlNode value;
};

struct YamlMistake {
  int line = 0;  ///< 0: the file as a whole
  int column = 0;
  std::string what;
};

struct YamlDocument {
  YamlNode root;  ///< kNull for an empty text, kInvalid where the syntax is broken
  std::vector<YamlMistake> mistakes;
};

/// Never throws for what stands in `text`.
YamlDocument parse_yaml(const std::string& text);

/// A decimal whole number: 0, 17, -3. No leading zeros, no 0x, 0o, +, _ or exponent. Empty also where 64 bits overflow.
std::optional<int64_t> parse_integer(const std::string& text);
/// A decimal number as JSON writes it: 1, -0.5, 2.0e-4. No inf, nan, `.5` or `1.`. Empty also where a double overflows.
std::optional<double> parse_number(const std::string& text);
/// true or false.
std::optional<bool> parse_boolean(const std::string& text);

}  // namespace moetune
