#include "trainer/recipe/recipe_docs.h"

#include <sstream>

#include "trainer/recipe/recipe_mistakes.h"
#include "trainer/recipe/recipe_schema.h"
#include "trainer/recipe/recipe_values.h"

namespace moetune {
namespace {

constexpr const char* kIntro = R"(# Recipes

A recipe is a YAML file that says everything about a run. One rank needs no `mpirun`:

    moetune train recipe.yaml
    mpirun -np 16 --hostfile hosts moetune train recipe.yaml train.steps=10 'adapter.targets=[attention, experts]'

`moetune validate recipe.yaml` checks a recipe without training. The smallest one:

```yaml
run: {dir: runs/first}
model: {path: /models/DeepSeek-V3}
data: {train: data/train.jsonl}
train: {steps: 100}
```

**Overrides.** `key.sub=value` behind the recipe replaces a value of the file, read by the type of the key. Text is
taken as it stands; a value that begins with `[`, `{` or a quote is YAML. `key.sub=` takes the key out of the file, so
that the default holds.

**Strictness.** An unknown key, a value of the wrong type or out of range, a key given twice: each is an error that
names the place, and all of them are told at once. Whole numbers are decimal (`010`, `0x10` and `1_000` are refused),
numbers are written as `2.0e-4`, booleans are `true` and `false`. Anchors, aliases, tags, merge keys and second
documents are refused, and so is a recipe beyond 1 MiB.

**Paths** are relative to the folder in which moetune is started. `~` and `$NAME` are not expanded, and are refused.

**What ran.** The run folder holds `recipe.yaml` with every value in force, and behind each where it came from: file and
line, command line, or default. It is a recipe like any other.

**Resuming.** `--resume` compares the recipe with that of the checkpoint, value by value. *same*: another value changes
what is computed, or in which order, and is refused. *contents*: another path is fine where it leads to the same data or
model. *free*: the run goes on with the new value; the log says the old and the new one.

This page is written by `moetune recipes docs` from the schema that also checks recipes.
)";

constexpr const char* kRules = R"(
## Rules over several keys

- Exactly one of `train.steps` and `train.epochs` is given.
- `train.schedule.warmup_steps` is at most `train.steps`.
- Where no linear map is frozen (`adapter: none`, all parts or all that have maps), `model.base` is `bf16` or `fp32`
  and there is no `model.cache`: quantised weights cannot be trained themselves.
- Each part in `train.parts` is one that the model has; of tied embeddings `embedding` and `head` train both or
  neither; a map that `adapter.targets` selects is in none of them.
- `train.experts` other than `all` stands where the part `experts` trains; each number in it is an expert of the model.
- `train.gradients: bf16` and `train.optimizer.rounding: stochastic` need `model.compute: bf16`.
- Each name in `adapter.ranks` is one that `adapter.targets` selects.
- `router.balance_loss` and `router.balance` exclude each other; `router.balance.weight` is that of a named kind.
- Each number in `adapter.layers` is a layer with a map that `adapter.targets` selects, each in `adapter.experts` an
  expert of the model.
- `router.train` other than `none` stands beside adapters, and not beside the part `router`: with `adapter: none` the
  routers train as other parts do.
- `eval.every_steps` above 0 and `eval.at_start` need `data.eval` or `data.eval_split`; these two exclude each other.
- `checkpoint.keep_best` above 0 needs held-out data (`data.eval` or `data.eval_split`) and `eval.every_steps` above 0.

## Targets

| group | leaf names |
|---|---|
)";

const char* on_resume_word(OnResume on_resume) {
  switch (on_resume) {
    case OnResume::kSame: return "same";
    case OnResume::kContents: return "contents";
    case OnResume::kFree: return "free";
    case OnResume::kUndecided: break;
  }
  return "?";
}

class Documenter {
 public:
  std::string text() const { return out_.str(); }

  template <typename Value>
  void field(const char* key, const Value& value, const FieldSpec& spec) {
    const std::string type = type_name(value, spec);
    const std::string unit = *spec.unit == '\0' ? "" : std::string(" [") + spec.unit + "]";
    const std::string default_value =
        *spec.default_text == '\0' ? "`" + write_value(value, spec) + "`" : spec.default_text;
    // where there are many, the names of a list or map stand in a table of their own
    constexpr size_t kFewNames = 10;
    const std::string range = range_limits(spec.range);
    if (prefix_.empty()) begin_table(key, "A key of its own.");
    const std::string limits = spec.words.size() <= kFewNames
                                   ? type_limits(value, spec)
                                   : range + (range.empty() ? "" : "; ") + "see [targets](#targets)";
    out_ << "| `" << joined(prefix_, key) << "` | " << type << unit << " | "
         << (spec.required ? "required" : default_value) << " | " << limits << " | " << on_resume_word(spec.on_resume)
         << " | " << spec.doc << " |\n";
  }

  template <typename Section>
  void section(const char* key, const char* doc, const Section& section) {
    const std::string outer = prefix_;
    prefix_ = joined(prefix_, key);
    if (outer.empty()) begin_table(key, doc);
    visit_keys(*this, section);
    prefix_ = outer;
  }

  template <typename Section>
  void optional_section(const char* key, const char* doc, const std::optional<Section>&) {
    section(key, doc, Section{});
  }

 private:
  void begin_table(const char* key, const char* doc) {
    out_ << "\n## " << key << "\n\n"
         << doc << "\n\n| key | type | default | allowed | on resume | meaning |\n|---|---|---|---|---|---|\n";
  }

  std::ostringstream out_;
  std::string prefix_;
};

std::string target_table() {
  std::string text;
  for (const std::string& target : target_words()) {
    const std::vector<std::string> leaves = target_leaves(target);
    if (leaves.size() == 1) continue;  // a leaf name itself
    text += "| `" + target + "` |";
    for (const std::string& leaf : leaves) text += " `" + leaf + "`";
    text += " |\n";
  }
  return text;
}

}  // namespace

std::string recipe_docs_markdown() {
  const Recipe defaults;
  Documenter documenter;
  visit_keys(documenter, defaults);
  return kIntro + documenter.text() + kRules + target_table();
}

}  // namespace moetune
