// Values of the command line: what they take out, and what would be lost.
#include "trainer/recipe/recipe_overrides.h"

#include "tests/support/catch.h"
#include "tests/support/recipe_text.h"

using namespace moetune;

TEST_CASE("overrides: a key that should not be there is taken out, and what stands behind it stays", "[recipe]") {
  CHECK(mistakes_of("typo: 1\n" + kSmall, {"typo="}).empty());
  CHECK(parse_recipe("typo: 1\n" + kSmall, "r.yaml", {"typo="}).run.dir == "runs/a");
  CHECK(mistakes_of(kSmall + "typo: 1\n", {"typo="}).empty());
  CHECK(mistakes_of(kSmall, {"typo="}).starts_with("command line: typo: unknown key; allowed: run, model, "));
}

TEST_CASE("overrides: a section behind one of its keys would take it back", "[recipe]") {
  for (const char* section : {"train={steps: 1}", "train="}) {
    CHECK(mistakes_of(kSmall, {"train.batch=16", section}) ==
          "command line: train.batch: given twice, the second time in train; give train before it");
  }
  CHECK(mistakes_of(kSmall, {"adapter.ranks.o_proj=4", "adapter.ranks={q_proj: 2}"}) ==
        "command line: adapter.ranks.o_proj: given twice, the second time in adapter.ranks; give adapter.ranks before "
        "it");
  const Recipe recipe = parse_recipe(kSmall, "r.yaml", {"train={steps: 1}", "train.batch=16"});
  CHECK(recipe.train.steps == 1);
  CHECK(recipe.train.batch == 16);
  // A name that only begins like another is another.
  CHECK(mistakes_of(kSmall, {"data.eval_split=0.5", "data.eval="}).empty());
}
