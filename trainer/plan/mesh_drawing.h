// Who holds what, drawn: `moetune inspect --mesh RECIPE`.
//
//   std::cout << draw_mesh(plan_mesh(recipe, 16, 8), "recipe.yaml");
#pragma once

#include <string>

#include "trainer/plan/planned_mesh.h"

namespace moetune {

/// The ranks as a grid with their experts and heads, the groups that hold the same weights, the bytes of each rank and
/// what a step moves between host, device and ranks.
std::string draw_mesh(const PlannedMesh& mesh, const std::string& recipe_path);

}  // namespace moetune
