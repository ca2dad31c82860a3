// A tiny twin of a recipe's run: the same kind of model, adapters, losses and data handling at sizes that take a
// second, in fp64.
//
//   const Twin twin = make_twin(recipe, blueprint);
//   Assembly run = assemble(twin.recipe, twin.blueprint, ...);
//
// What a layout could get wrong stays: groups of experts, shared experts, latents, MTP, tied embeddings, targets, rank
// and scale, dropout, base format, losses, bias updates, clipping. Sizes are chosen so that heads, widths, experts and
// the vocabulary divide unevenly where they may and evenly, on block borders, where they must, for up to four tensor-
// and eight expert-parallel ranks.
#pragma once

#include <cstdint>
#include <vector>

#include "moe/blueprint.h"
#include "trainer/data/documents.h"
#include "trainer/recipe/recipe.h"

namespace moetune {

struct Twin {
  Recipe recipe;
  Blueprint blueprint;
  Documents documents;
  int64_t steps = 0;
};

Twin make_twin(const Recipe& recipe, const Blueprint& blueprint);

}  // namespace moetune
