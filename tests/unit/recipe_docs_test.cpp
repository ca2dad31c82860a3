// docs/recipes.md is what the schema says.
#include <fstream>
#include <sstream>

#include "tests/support/catch.h"
#include "trainer/recipe/recipe.h"
#include "trainer/recipe/recipe_docs.h"
#include "trainer/recipe/recipe_load.h"

using namespace moetune;

namespace {

std::string committed_docs() {
  std::ifstream file(MOETUNE_SOURCE_DIR "/docs/recipes.md");
  std::ostringstream text;
  text << file.rdbuf();
  return text.str();
}

}  // namespace

TEST_CASE("docs/recipes.md is fresh") {
  INFO("docs/recipes.md differs from the schema; write it again with: build/moetune recipes docs > docs/recipes.md");
  const bool fresh = committed_docs() == recipe_docs_markdown();
  CHECK(fresh);
}

TEST_CASE("the recipe in docs/recipes.md loads") {
  const std::string docs = committed_docs();
  const std::string fence = "```yaml\n";
  const size_t begin = docs.find(fence);
  REQUIRE(begin != std::string::npos);
  const size_t end = docs.find("```", begin + fence.size());
  const Recipe recipe = parse_recipe(docs.substr(begin + fence.size(), end - begin - fence.size()), "docs/recipes.md");
  CHECK(recipe.run.dir == "runs/first");
  CHECK(recipe.train.steps == 100);
}
