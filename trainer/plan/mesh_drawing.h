// Who holds what, drawn: `moetune inspect --mesh RECIPE`.
//
//   std::cout << draw_mesh(recipe, "recipe.yaml", /*world_size=*/16);
#pragma once

#include <cstdint>
#include <string>

#include "trainer/recipe/recipe.h"

namespace moetune {

/// The ranks as a grid with their experts and heads, the groups that hold the same weights, the bytes of each rank and what a step moves
/// between host, device and ranks. Needs config.json and no weights. `world_size` 0: as many ranks as the recipe's mesh asks for, dp 1
/// where it says auto. Throws UserError where mesh, ranks and model do not go together.
std::string draw_mesh(const Recipe& recipe, const std::string& recipe_path, int64_t world_size);

}  // namespace moetune
