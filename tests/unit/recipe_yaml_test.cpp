// The strict YAML of recipes: what is read, where it stands, and what is refused.
#include "trainer/recipe/recipe_yaml.h"

#include <sstream>

#include "tests/support/catch.h"

using namespace moetune;
using Kind = YamlNode::Kind;

namespace {

// "line:column what" of each mistake, a line each
std::string mistakes_of(const std::string& text) {
  std::ostringstream out;
  for (const YamlMistake& mistake : parse_yaml(text).mistakes) {
    out << mistake.line << ":" << mistake.column << " " << mistake.what << "\n";
  }
  return out.str();
}

size_t count_nodes(const YamlNode& node) {
  size_t count = 1;
  for (const YamlNode& item : node.items) count += count_nodes(item);
  for (const YamlEntry& entry : node.entries) count += count_nodes(entry.value);
  return count;
}

constexpr const char* kAnchor = "an anchor (&name) is not allowed in a recipe; write the value out where it is used\n";
constexpr const char* kAlias = "an alias (*name) is not allowed in a recipe; write the value out\n";

}  // namespace

TEST_CASE("recipe yaml: a tree with places") {
  const YamlDocument document = parse_yaml("run: {dir: a b, seed: 17}\nlist:\n  - 'x'\n  - ~\n");
  REQUIRE(document.mistakes.empty());
  const YamlNode& root = document.root;
  REQUIRE(root.kind == Kind::kMap);
  REQUIRE(root.entries.size() == 2);
  CHECK(root.entries[0].key == "run");
  const YamlNode& run = root.entries[0].value;
  REQUIRE(run.entries.size() == 2);
  CHECK(run.entries[0].value.text == "a b");
  CHECK(run.entries[1].key == "seed");
  CHECK(run.entries[1].line == 1);
  CHECK(run.entries[1].column == 17);
  CHECK(run.entries[1].value.text == "17");
  CHECK(run.entries[1].value.column == 23);
  CHECK_FALSE(run.entries[1].value.quoted);
  const YamlNode& list = root.entries[1].value;
  REQUIRE(list.kind == Kind::kList);
  REQUIRE(list.items.size() == 2);
  CHECK(list.items[0].text == "x");
  CHECK(list.items[0].quoted);
  CHECK(list.items[0].line == 3);
  CHECK(list.items[1].kind == Kind::kNull);
}

TEST_CASE("recipe yaml: scalars stay text") {
  const YamlDocument document = parse_yaml("[010, 0x10, yes, 1_000, 1e5, .inf, 2001-01-01]");
  REQUIRE(document.mistakes.empty());
  std::vector<std::string> texts;
  for (const YamlNode& item : document.root.items) texts.push_back(item.text);
  CHECK(texts == std::vector<std::string>{"010", "0x10", "yes", "1_000", "1e5", ".inf", "2001-01-01"});
}

TEST_CASE("recipe yaml: anchors, aliases and tags are refused, all of them in one pass") {
  CHECK(mistakes_of("a: &x 1\nb: *x\n") == std::string("1:4 ") + kAnchor + "2:4 " + kAlias);
  CHECK(mistakes_of("a: &x [*x]\n") == std::string("1:4 ") + kAnchor + "1:8 " + kAlias);
  CHECK(mistakes_of("a: &x {b: 1}\n") == std::string("1:4 ") + kAnchor);
  CHECK(mistakes_of("a: *x\n") == "1:4 an alias (*name) is not allowed in a recipe; write the value out\n");
  CHECK(mistakes_of("a: !!int 3\nb: !mine [1]\n") ==
        "1:4 the tag 'tag:yaml.org,2002:int' is not allowed in a recipe; the key alone decides the type\n"
        "2:4 the tag '!mine' is not allowed in a recipe; the key alone decides the type\n");
}

TEST_CASE("recipe yaml: an alias bomb stays as small as its text") {
  std::string bomb = "l0: &l0 [x, x, x, x, x, x, x, x, x, x]\n";
  for (int level = 1; level < 12; ++level) {
    const std::string name = "l" + std::to_string(level);
    const std::string below = "*l" + std::to_string(level - 1);
    bomb += name + ": &" + name + " [";
    for (int i = 0; i < 10; ++i) bomb += (i == 0 ? "" : ", ") + below;
    bomb += "]\n";
  }
  const YamlDocument document = parse_yaml(bomb);
  CHECK(document.mistakes.size() == 12 + 11 * 10);  // anchors and aliases
  CHECK(count_nodes(document.root) == 1 + 12 * 11);
}

TEST_CASE("recipe yaml: keys are text, and given once") {
  CHECK(mistakes_of("a: 1\nb: 2\na: 3\n") == "3:1 the key 'a' was already given at 1:1\n");
  CHECK(mistakes_of("{a: 1, 'a': 2}") == "1:8 the key 'a' was already given at 1:2\n");
  CHECK(mistakes_of("x: {a: 1}\na: {a: 1}\n").empty());
  CHECK(mistakes_of("? [a, b]\n: c\n") == "1:3 a key must be text\n");
  CHECK(mistakes_of("~: 1\n") == "1:1 a key must be text\n");
  CHECK(mistakes_of("<<: {a: 1}\n") == "1:1 a merge key (<<) is not allowed in a recipe; write the values out\n");
  CHECK(parse_yaml("a: 1\na: 3\n").root.entries.size() == 1);
}

TEST_CASE("recipe yaml: one document of bounded size and depth") {
  CHECK(mistakes_of("---\na: 1\n").empty());
  CHECK(mistakes_of("---\na: 1\n---\nb: 2\n") == "4:1 a second document begins; a recipe is one document\n");
  CHECK(parse_yaml("").root.kind == Kind::kNull);
  CHECK(mistakes_of(std::string(32, '[') + std::string(32, ']')).empty());
  CHECK(mistakes_of(std::string(33, '[') + std::string(33, ']')) == "1:33 nested deeper than 32 levels\n");
  CHECK(mistakes_of(std::string(200000, '[')).find("nested deeper than 32 levels\n") != std::string::npos);
  const std::string largest = "a: " + std::string((1 << 20) - 3, 'x');
  CHECK(mistakes_of(largest).empty());
  CHECK(mistakes_of(largest + "x") == "0:0 larger than the 1048576 bytes that a recipe may have\n");
  CHECK(mistakes_of(std::string("a: \0b", 5)) == "0:0 holds control characters; a recipe is UTF-8 text\n");
  CHECK(mistakes_of("a: {b: 1\n") == "2:1 not YAML: end of map flow not found\n");
  CHECK(parse_yaml("a: {b: 1\n").root.kind == Kind::kInvalid);
}

TEST_CASE("recipe yaml: numbers and booleans") {
  CHECK(parse_integer("0") == 0);
  CHECK(parse_integer("-3") == -3);
  CHECK(parse_integer("1000") == 1000);
  CHECK(parse_integer("9223372036854775807") == INT64_MAX);
  for (const char* text :
       {"", "-", "010", "-010", "00", "0x10", "0o17", "1_000", "+1", " 1", "1 ", "1e5", "1.0", "9223372036854775808"}) {
    INFO(text);
    CHECK_FALSE(parse_integer(text));
  }
  CHECK(parse_number("1e-4") == 1e-4);
  CHECK(parse_number("2.0e-4") == 2.0e-4);
  CHECK(parse_number("-0.5") == -0.5);
  CHECK(parse_number("3") == 3.0);
  CHECK(parse_number("1E+2") == 100.0);
  for (const char* text :
       {"", ".5", "1.", "01.5", "1e", "1e+", ".inf", "inf", "nan", "0x1p3", "1_0.5", "1e999", "1,5", "1e5 "}) {
    INFO(text);
    CHECK_FALSE(parse_number(text));
  }
  CHECK(parse_boolean("true") == true);
  CHECK(parse_boolean("false") == false);
  for (const char* text : {"yes", "no", "on", "True", "TRUE", "1", ""}) CHECK_FALSE(parse_boolean(text));
}
