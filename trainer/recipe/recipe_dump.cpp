#include "trainer/recipe/recipe_dump.h"

#include <algorithm>
#include <sstream>

#include "trainer/recipe/recipe_mistakes.h"
#include "trainer/recipe/recipe_schema.h"
#include "trainer/recipe/recipe_values.h"

namespace moetune {
namespace {

constexpr size_t kCommentColumn = 48;

class Dumper {
 public:
  explicit Dumper(const Recipe& recipe) : recipe_(recipe) {}

  std::string text() const { return out_.str(); }

  template <typename Value>
  void field(const char* key, const Value& value, const FieldSpec& spec) {
    const std::string origin = recipe_.origin(joined(prefix_, key));
    const bool derived = origin == "default" && *spec.default_text != '\0';
    line(key, write_value(value, spec), derived ? origin + ": " + spec.default_text : origin);
  }

  template <typename Section>
  void section(const char* key, const char*, const Section& section) {
    out_ << indent() << key << ":\n";
    const std::string outer = prefix_;
    prefix_ = joined(prefix_, key);
    ++depth_;
    visit_keys(*this, section);
    --depth_;
    prefix_ = outer;
  }

  template <typename Section>
  void optional_section(const char* key, const char* doc, const std::optional<Section>& value) {
    if (value) {
      section(key, doc, *value);
    } else {
      line(key, "none", recipe_.origin(joined(prefix_, key)));
    }
  }

 private:
  std::string indent() const { return std::string(2 * depth_, ' '); }

  void line(const std::string& key, const std::string& value, std::string origin) {
    // a file name may hold what would end the comment
    std::replace_if(origin.begin(), origin.end(), [](unsigned char c) { return c < 0x20 || c == 0x7f; }, '?');
    std::string text = indent() + key + ": " + value;
    if (text.size() < kCommentColumn) text.resize(kCommentColumn, ' ');
    out_ << text << "  # " << origin << "\n";
  }

  const Recipe& recipe_;
  std::ostringstream out_;
  std::string prefix_;
  size_t depth_ = 0;
};

}  // namespace

std::string dump_resolved(const Recipe& recipe) {
  Dumper dumper(recipe);
  visit_keys(dumper, recipe);
  return "# Every value in force, and where it came from.\n" + dumper.text();
}

}  // namespace moetune
