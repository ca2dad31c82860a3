// Everything about a recipe that can be checked without weights or devices, in a second: `moetune validate RECIPE`.
//
//   std::cout << validate(load_recipe(path), path, /*world_size=*/0);
#pragma once

#include <cstdint>
#include <string>

#include "trainer/recipe/recipe.h"

namespace moetune {

/// Checks that config.json is a model this program computes, that tokenizer, weights (all tensors, with their shapes
/// and dtypes), data and adapter are there, that targets match and the mesh divides; then tells what would train,
/// where, and the bytes that each rank would hold. `world_size` 0: not known, the mesh is the recipe's own, with dp 1
/// where it says auto. Reads headers and, of weights, what is small: norms, biases, an adapter, a head beside tied
/// embeddings. Needs no device. Throws one UserError that lists all mistakes.
std::string validate(const Recipe& recipe, const std::string& recipe_path, int64_t world_size);

}  // namespace moetune
