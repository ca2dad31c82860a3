// Values of the command line, put into the tree of the file before the schema reads it.
//
//   apply_overrides({"train.steps=10", "adapter.targets=[attention, experts]", "eval="}, keys, root, mistakes);
//
// The value is taken as it stands, so that a path needs no quotes; one that begins with [ { " or ' is YAML. An empty
// value takes the key out of the file. The nodes set here have no place (line 0), which is how origins and messages
// know them.
#pragma once

#include <string>
#include <vector>

#include "trainer/recipe/recipe_mistakes.h"
#include "trainer/recipe/recipe_yaml.h"

namespace moetune {

/// Changes `root`, a map. `keys` are the full names of all values of the schema: dots behind such a name do not split,
/// so that adapter.ranks.experts.up_proj is the key experts.up_proj of the map adapter.ranks.
void apply_overrides(const std::vector<std::string>& overrides, const std::vector<std::string>& keys, YamlNode& root,
                     Mistakes& mistakes);

}  // namespace moetune
