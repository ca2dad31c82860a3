// The recipes that come with the program: list, read, copy.
#pragma once

#include <string>

namespace moetune {

/// One line a recipe: its name and the first comment line of its file.
std::string list_recipes();
/// The text of a recipe, by name with or without ".yaml". Throws UserError with the nearest names.
std::string read_recipe(const std::string& name);
/// Writes the recipe to `file`, which must not exist yet, and says so.
std::string copy_recipe(const std::string& name, const std::string& file);

}  // namespace moetune
