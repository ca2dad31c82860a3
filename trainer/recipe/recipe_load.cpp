#include "trainer/recipe/recipe_load.h"

#include <algorithm>
#include <fstream>
#include <set>
#include <tuple>
#include <type_traits>
#include <utility>

#include "parallel/base/error.h"
#include "trainer/recipe/recipe_mistakes.h"
#include "trainer/recipe/recipe_overrides.h"
#include "trainer/recipe/recipe_schema.h"
#include "trainer/recipe/recipe_values.h"
#include "trainer/recipe/recipe_yaml.h"

namespace moetune {
namespace {

using Kind = YamlNode::Kind;

// Lists the full names of all keys that hold a value: "train.optimizer.lr".
class KeyLister {
 public:
  std::vector<std::string> keys;

  template <typename Value>
  void field(const char* key, Value&, const FieldSpec&) {
    keys.push_back(joined(prefix_, key));
  }
  template <typename Section>
  void section(const char* key, const char*, Section& section) {
    const std::string outer = prefix_;
    prefix_ = joined(prefix_, key);
    visit_keys(*this, section);
    prefix_ = outer;
  }
  template <typename Section>
  void optional_section(const char* key, const char* doc, std::optional<Section>& value) {
    section(key, doc, *value);
  }

 private:
  std::string prefix_;
};

const std::vector<std::string>& all_keys() {
  static const std::vector<std::string> kKeys = [] {
    Recipe recipe;
    KeyLister lister;
    visit_keys(lister, recipe);
    return lister.keys;
  }();
  return kKeys;
}

// Walks the schema beside the tree: fills the recipe, notes origins, reports what the schema does not allow.
class Loader {
 public:
  Loader(std::string file, Recipe& recipe, Mistakes& mistakes)
      : file_(std::move(file)), recipe_(recipe), mistakes_(mistakes) {}

  void load(const YamlNode& root) {
    map_ = &root;
    visit_keys(*this, recipe_);
    refuse_unknown_keys();
    if (recipe_.adapter && !given("adapter.alpha")) recipe_.adapter->alpha = static_cast<double>(recipe_.adapter->rank);
  }

  template <typename Value>
  void field(const char* key, Value& value, const FieldSpec& spec) {
    known_.push_back(key);
    const std::string name = joined(prefix_, key);
    const YamlNode* node = find(key);
    if (node == nullptr) {
      if (spec.required) mistakes_.in_file(str(name, ": missing; allowed: ", allowed_value(value, spec)));
      return;
    }
    note(name, *node);
    if constexpr (std::is_same_v<Value, DataFiles> || std::is_same_v<Value, std::optional<DataFiles>>) {
      for (size_t i = 0; i < node->items.size(); ++i) note(str(name, "[", i, "]"), node->items[i]);
    }
    const ValueProblems problems = read_value(*node, spec, value);
    for (const ValueProblem& problem : problems) {
      const std::string allowed = problem.say_allowed ? "; allowed: " + allowed_value(value, spec) : "";
      mistakes_.at(*problem.node, str(name, ": ", problem.what, allowed));
    }
    if (!problems.empty() || node->kind == Kind::kInvalid) bad_.insert(name);
  }

  template <typename Section>
  void section(const char* key, const char*, Section& section) {
    known_.push_back(key);
    walk(key, find(key), section, "map of keys");
  }

  template <typename Section>
  void optional_section(const char* key, const char*, std::optional<Section>& section) {
    known_.push_back(key);
    const YamlNode* node = find(key);
    if (node != nullptr && node->kind == Kind::kScalar && node->text == "none") {
      note(joined(prefix_, key), *node);
      section.reset();
    } else {
      walk(key, node, *section, "none or map of keys");
    }
  }

  /// Whether the file or the command line gives `name` a value other than null.
  bool given(const std::string& name) const {
    const auto found = nodes_.find(name);
    return found != nodes_.end() && found->second->kind != Kind::kNull;
  }
  /// Whether none of `names`, nor their section, has a mistake of its own: only then does a rule over them make sense.
  bool sound(const std::vector<std::string>& names) const {
    return std::none_of(names.begin(), names.end(), [&](const std::string& name) {
      return bad_.count(name) > 0 || bad_.count(name.substr(0, name.find('.'))) > 0;
    });
  }
  /// Reports a broken rule at the first of `names` that is given, otherwise for the file as a whole.
  void broken(const std::vector<std::string>& names, const std::string& what) {
    for (const std::string& name : names) {
      if (given(name)) return mistakes_.at(*nodes_.at(name), str(name, ": ", what));
    }
    mistakes_.in_file(str(names.front(), ": ", what));
  }

 private:
  const YamlNode* find(const char* key) const {
    if (map_ == nullptr) return nullptr;
    for (const YamlEntry& entry : map_->entries) {
      if (entry.key == key) return &entry.value;
    }
    return nullptr;
  }

  void note(const std::string& name, const YamlNode& node) {
    nodes_[name] = &node;
    recipe_.origins[name] = node.line > 0 ? str(file_, ":", node.line) : Mistakes::kCommandLine;
  }

  template <typename Section>
  void walk(const char* key, const YamlNode* node, Section& section, const char* allowed) {
    const std::string name = joined(prefix_, key);
    if (node != nullptr && node->kind != Kind::kMap) {
      bad_.insert(name);
      if (node->kind == Kind::kInvalid) return;
      mistakes_.at(*node, str(name, ": ", shown(*node), " is not allowed; allowed: ", allowed));
      return;
    }
    Outer outer{std::move(map_), std::move(prefix_), std::move(known_)};
    map_ = node;
    prefix_ = name;
    known_.clear();
    visit_keys(*this, section);
    refuse_unknown_keys();
    std::tie(map_, prefix_, known_) = std::move(outer);
  }

  void refuse_unknown_keys() {
    if (map_ == nullptr) return;
    for (const YamlEntry& entry : map_->entries) {
      if (std::find(known_.begin(), known_.end(), entry.key) != known_.end()) continue;
      const std::string what = str(joined(prefix_, entry.key), ": unknown key", hint(entry.key));
      entry.line > 0 ? mistakes_.at(entry.line, entry.column, what) : mistakes_.on_command_line(what);
    }
  }

  // A slip of a key of this section, a key of another section, or the list of what is there.
  std::string hint(const std::string& key) const {
    if (nearest_name(key, known_).empty()) {
      for (const std::string& name : all_keys()) {
        if (name.size() > key.size() && name.compare(name.size() - key.size() - 1, std::string::npos, "." + key) == 0) {
          return str("; did you mean '", name, "'?");
        }
      }
    }
    return suggestion(key, known_);
  }

  using Outer = std::tuple<const YamlNode*, std::string, std::vector<std::string>>;

  std::string file_;
  Recipe& recipe_;
  Mistakes& mistakes_;
  const YamlNode* map_ = nullptr;  // the section being walked; null where the file does not have it
  std::string prefix_;
  std::vector<std::string> known_;  // its keys so far
  std::map<std::string, const YamlNode*> nodes_;
  std::set<std::string> bad_;
};

// Rules over several keys

void check_together(const Recipe& recipe, Loader& loader) {
  const bool steps = loader.given("train.steps");
  const bool epochs = loader.given("train.epochs");
  if (steps == epochs && loader.sound({"train.steps", "train.epochs"})) {
    loader.broken({"train.steps", "train.epochs"}, steps ? "given together with train.epochs; give one of the two"
                                                         : "missing; give train.steps or train.epochs");
  }
  const int64_t warmup = recipe.train.schedule.warmup_steps;
  if (recipe.train.steps && warmup > *recipe.train.steps &&
      loader.sound({"train.steps", "train.schedule.warmup_steps"})) {
    loader.broken({"train.schedule.warmup_steps"},
                  str(warmup, " is more than the ", *recipe.train.steps, " steps of the run"));
  }
  // Where parts are named, whether they are all of the model's linear maps depends on the model (recipe_meaning.h).
  const ExpertChoice& experts = recipe.train.experts;
  const bool some_experts = experts.kind != ExpertChoice::Kind::kAll;
  const bool all_train = !recipe.adapter && !recipe.train.parts && !some_experts;
  if (all_train && is_quantised(recipe.model.base) && loader.sound({"model.base", "train.parts", "train.experts"})) {
    loader.broken({"model.base", "adapter"}, str(to_string(recipe.model.base), " weights cannot be trained themselves ",
                                                 "(adapter: none); allowed then: bf16 or fp32, or a frozen part: name "
                                                 "those that train in train.parts"));
  }
  if (all_train && recipe.model.cache && loader.sound({"model.cache", "train.parts", "train.experts"})) {
    loader.broken({"model.cache", "adapter"},
                  "the weights themselves train (adapter: none), so there are no frozen ones to keep; take it out");
  }
  if (recipe.model.compute != ComputeType::kBf16) {
    const std::string why = str("of weights in bf16; model.compute is ", to_string(recipe.model.compute));
    if (recipe.train.gradients == GradientType::kBf16 && loader.sound({"train.gradients", "model.compute"})) {
      loader.broken({"train.gradients"}, str("bf16: ", why, ": allowed then: fp32"));
    }
    if (recipe.train.optimizer.rounding == Rounding::kStochastic &&
        loader.sound({"train.optimizer.rounding", "model.compute"})) {
      loader.broken({"train.optimizer.rounding"}, str("stochastic: ", why, ": allowed then: nearest"));
    }
  }
  const auto& parts = recipe.train.parts;
  const auto names_part = [&](std::string_view part) {
    return parts && std::find(parts->begin(), parts->end(), part) != parts->end();
  };
  const bool experts_train = parts ? names_part("experts") : !recipe.adapter.has_value();
  if (some_experts && !experts_train && loader.sound({"train.experts", "train.parts"})) {
    loader.broken({"train.experts"},
                  str(to_string(experts), " of experts whose weights do not train",
                      parts ? "" : " (train.parts: auto beside adapters trains none)",
                      "; name the part experts in train.parts, or take it out (adapter.experts is for adapters)"));
  }
  if (recipe.adapter && loader.sound({"adapter.targets", "adapter.ranks"})) {
    std::set<std::string> selected;
    for (const std::string& target : recipe.adapter->targets) {
      for (const std::string& leaf : target_leaves(target)) selected.insert(leaf);
    }
    for (const auto& [leaf, rank] : recipe.adapter->ranks) {
      if (selected.count(leaf) > 0) continue;
      loader.broken({"adapter.ranks"}, str(leaf, " has a rank but is not selected by adapter.targets"));
    }
  }
  if (!recipe.adapter && recipe.router.train != RouterTraining::kNone && loader.sound({"router.train"})) {
    loader.broken(
        {"router.train"},
        "stands beside adapters; with adapter: none all parts train, or those that train.parts names: take it "
        "out");
  }
  if (recipe.adapter && recipe.router.train != RouterTraining::kNone && names_part("router") &&
      loader.sound({"router.train", "train.parts"})) {
    loader.broken({"router.train"}, str("routers train by ", to_string(recipe.router.train),
                                        " here and by train.parts too; give one of the two"));
  }
  if (recipe.router.balance_loss > 0.0 && recipe.router.balance.kind != BalanceKind::kNone &&
      loader.sound({"router.balance_loss", "router.balance.kind"})) {
    loader.broken({"router.balance_loss"}, "given together with router.balance; give one of the two");
  }
  if (recipe.router.balance.weight && recipe.router.balance.kind == BalanceKind::kNone &&
      loader.sound({"router.balance.weight", "router.balance.kind"})) {
    loader.broken({"router.balance.weight"},
                  "of no loss: router.balance.kind is none; name a kind (auto is the "
                  "family's own), or take the weight out");
  }
  if (recipe.data.eval && recipe.data.eval_split > 0.0 && loader.sound({"data.eval", "data.eval_split"})) {
    loader.broken({"data.eval_split"}, "given together with data.eval; give one of the two");
  }
  if (!recipe.data.eval && recipe.data.eval_split == 0.0 &&
      loader.sound({"data.eval", "data.eval_split", "eval.every_steps", "eval.at_start"})) {
    for (const char* key : {"eval.every_steps", "eval.at_start"}) {
      if (key == std::string("eval.at_start") ? !recipe.eval.at_start : recipe.eval.every_steps == 0) continue;
      loader.broken({key}, "there is nothing to evaluate on; give data.eval or data.eval_split");
    }
  }
  if (recipe.checkpoint.keep_best > 0 &&
      ((!recipe.data.eval && recipe.data.eval_split == 0.0) || recipe.eval.every_steps == 0) &&
      loader.sound({"checkpoint.keep_best", "data.eval", "data.eval_split", "eval.every_steps"})) {
    loader.broken({"checkpoint.keep_best"},
                  "what is best is found by evaluating; give data.eval (or data.eval_split) and eval.every_steps");
  }
}

}  // namespace

Recipe parse_recipe(const std::string& text, const std::string& name, const std::vector<std::string>& overrides) {
  Mistakes mistakes(name);
  YamlDocument document = parse_yaml(text);
  for (const YamlMistake& mistake : document.mistakes) {
    mistake.line > 0 ? mistakes.at(mistake.line, mistake.column, mistake.what) : mistakes.in_file(mistake.what);
  }
  YamlNode& root = document.root;
  if (root.kind == Kind::kNull) root.kind = Kind::kMap;  // an empty file: everything may come from the command line
  if (root.kind != Kind::kMap) {
    if (root.kind != Kind::kInvalid) {
      mistakes.at(root, str("a recipe is a map of sections such as 'run:', not ", shown(root)));
    }
    mistakes.raise_if_any();
  }
  apply_overrides(overrides, all_keys(), root, mistakes);

  Recipe recipe;
  Loader loader(name, recipe, mistakes);
  loader.load(root);
  check_together(recipe, loader);
  mistakes.raise_if_any();
  return recipe;
}

Recipe load_recipe(const std::string& path, const std::vector<std::string>& overrides) {
  if (path.empty()) throw UserError("the path of the recipe is empty; name a YAML file");
  std::ifstream file(path, std::ios::binary);
  // one byte more than is allowed is enough to refuse it
  std::string text(kMaxYamlBytes + 1, '\0');
  file.read(text.data(), static_cast<std::streamsize>(text.size()));
  if (!file.is_open() || file.bad() || (file.fail() && !file.eof())) {
    throw UserError(str(path, ": cannot be read; a recipe is a YAML file on this machine"));
  }
  text.resize(static_cast<size_t>(file.gcount()));
  return parse_recipe(text, path, overrides);
}

}  // namespace moetune
