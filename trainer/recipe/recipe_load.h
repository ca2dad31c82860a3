// A recipe from its file: read, overridden from the command line, checked against the schema and its rules.
//
//   const Recipe recipe = load_recipe("recipes/tiny.yaml", {"train.steps=10", "adapter.targets=[attention, experts]"});
#pragma once

#include <string>
#include <vector>

#include "trainer/recipe/recipe.h"

namespace moetune {

/// Reads and checks the recipe at `path`; each override "key.sub=value" replaces a value of the file ("key.sub=" takes
/// it out, so that the default holds). Throws one UserError that lists all mistakes, each with its place.
Recipe load_recipe(const std::string& path, const std::vector<std::string>& overrides = {});

/// The same on text already in memory; `name` stands for the file in messages and origins.
Recipe parse_recipe(const std::string& text, const std::string& name, const std::vector<std::string>& overrides = {});

}  // namespace moetune
