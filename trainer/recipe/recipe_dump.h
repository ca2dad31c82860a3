// A recipe written out again: YAML with the origin of each value behind it.
//
//   write_text_atomically(run_dir / "recipe.yaml", dump_resolved(recipe));   // loads again to the same values
#pragma once

#include <string>

#include "trainer/recipe/recipe.h"

namespace moetune {

/// All values in force as YAML that loads again to the same recipe; behind each value a comment says where it came
/// from.
std::string dump_resolved(const Recipe& recipe);

}  // namespace moetune
