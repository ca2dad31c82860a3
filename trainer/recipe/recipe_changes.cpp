#include "trainer/recipe/recipe_changes.h"

#include <map>
#include <set>
#include <type_traits>
#include <utility>

#include "trainer/recipe/recipe_mistakes.h"
#include "trainer/recipe/recipe_values.h"

namespace moetune {
namespace {

/// The value of each key as text, in the order of the schema.
class ValueLister {
 public:
  struct Entry {
    std::string key, value;
    std::string meaning;  ///< equal for values that mean the same
    OnResume on_resume;
  };
  std::vector<Entry> entries;

  template <typename Value>
  void field(const char* key, const Value& value, const FieldSpec& spec) {
    const std::string text = write_value(value, spec);
    entries.push_back({joined(prefix_, key), text, meaning_of(key, value, text), spec.on_resume});
  }
  template <typename Section>
  void section(const char* key, const char*, const Section& section) {
    const std::string outer = prefix_;
    prefix_ = joined(prefix_, key);
    visit_keys(*this, section);
    prefix_ = outer;
  }
  template <typename Section>
  void optional_section(const char* key, const char* doc, const std::optional<Section>& value) {
    const char* const there = value ? "given" : "none";
    entries.push_back({joined(prefix_, key), there, there, OnResume::kSame});
    if (value) section(key, doc, *value);
  }

 private:
  template <typename Value>
  static std::string meaning_of(const std::string& key, const Value& value, const std::string& text) {
    if constexpr (std::is_same_v<Value, Words>) {
      if (key == "targets") {
        std::set<std::string> selected;
        for (const std::string& target : value) {
          for (const std::string& leaf : target_leaves(target)) selected.insert(leaf);
        }
        return sorted_text({selected.begin(), selected.end()});
      }
    }
    // Parts train whatever the order in which they are named.
    if constexpr (std::is_same_v<Value, std::optional<Words>>) {
      if (value) return sorted_text(*value);
    }
    // A range is as good as its numbers.
    if constexpr (std::is_same_v<Value, LayerChoice>) {
      if (!value.all) return numbers_text(value.ranges) + (value.mtp ? "mtp" : "");
    }
    if constexpr (std::is_same_v<Value, ExpertChoice>) {
      if (value.kind == ExpertChoice::Kind::kListed) return numbers_text(value.ranges);
    }
    return text;
  }

  static std::string sorted_text(const Words& words) {
    std::string text;
    for (const std::string& word : std::set<std::string>(words.begin(), words.end())) text += word + " ";
    return text;
  }

  static std::string numbers_text(const std::vector<NumberRange>& ranges) {
    std::string numbers;
    for (const int64_t number : ExpertChoice{ExpertChoice::Kind::kListed, ranges, 0}.listed()) {
      numbers += std::to_string(number) + " ";
    }
    return numbers;
  }

  std::string prefix_;
};

std::vector<ValueLister::Entry> values_of(const Recipe& recipe) {
  ValueLister lister;
  visit_keys(lister, recipe);
  return lister.entries;
}

}  // namespace

std::vector<RecipeChange> recipe_changes(const Recipe& then, const Recipe& now) {
  std::map<std::string, ValueLister::Entry> before;
  for (ValueLister::Entry& entry : values_of(then)) before.emplace(entry.key, std::move(entry));
  std::vector<RecipeChange> changes;
  for (const ValueLister::Entry& entry : values_of(now)) {
    const auto found = before.find(entry.key);  // a key of a section that the other lacks: said of the section
    if (found == before.end() || found->second.meaning == entry.meaning) continue;
    changes.push_back({entry.key, found->second.value, entry.value, entry.on_resume});
  }
  return changes;
}

std::vector<std::pair<std::string, OnResume>> keys_on_resume() {
  std::vector<std::pair<std::string, OnResume>> keys;
  for (const ValueLister::Entry& entry : values_of(Recipe())) keys.emplace_back(entry.key, entry.on_resume);
  return keys;
}

}  // namespace moetune
