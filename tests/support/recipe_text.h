// Recipes from text, and what a test says of them.
//
//   const Recipe recipe = parse_recipe(kSmall + "eval: {every_steps: 5}\n", "r.yaml");
//   CHECK(mistakes_of(kSmall + "train: 3\n") == "r.yaml:5: ...");
#pragma once

#include <string>
#include <vector>

#include "parallel/base/error.h"
#include "trainer/recipe/recipe.h"
#include "trainer/recipe/recipe_load.h"

namespace moetune {

/// The smallest recipe, on lines 1 to 4; tests append to it.
inline const std::string kSmall =
    "run: {dir: runs/a}\n"
    "model: {path: /m}\n"
    "data: {train: t.jsonl}\n"
    "train: {steps: 5}\n";

/// What the user is told; empty when the recipe loads.
inline std::string mistakes_of(const std::string& text, const std::vector<std::string>& overrides = {}) {
  try {
    parse_recipe(text, "r.yaml", overrides);
    return "";
  } catch (const UserError& error) {
    return error.what();
  }
}

inline bool same_values(const Recipe& a, const Recipe& b) {
  return a.run == b.run && a.model == b.model && a.adapter == b.adapter && a.data == b.data && a.train == b.train &&
         a.mesh == b.mesh && a.offload == b.offload && a.exchange == b.exchange && a.router == b.router &&
         a.mtp == b.mtp && a.checkpoint == b.checkpoint && a.eval == b.eval && a.deterministic == b.deterministic;
}

}  // namespace moetune
