// Long lists of tensor names in a few lines: names that differ in their numbers alone become one.
//
//   summarise_names({"model.layers.3.mlp.up_proj", "model.layers.4.mlp.up_proj"})
//       == {"model.layers.{3-4}.mlp.up_proj"}
#pragma once

#include <string>
#include <vector>

namespace moetune {

/// One line for each pattern, in the order of first appearance. Each number's values are listed for themselves, so a
/// line stands for exactly its names only where their numbers combine freely, and otherwise ends in " (N names)".
std::vector<std::string> summarise_names(const std::vector<std::string>& names);

}  // namespace moetune
