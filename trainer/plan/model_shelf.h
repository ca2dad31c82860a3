// The models whose config.json comes with the program, so that a plan needs none of their files.
//
//   load_planned_model("deepseek-v3");     // recipes/models/deepseek-v3.json
//   load_planned_model("/models/mine");    // a folder with config.json, or such a file itself
#pragma once

#include <string>
#include <vector>

#include "moe/blueprint.h"

namespace moetune {

std::vector<std::string> shipped_models();
/// Throws UserError, with the names that there are, for what is neither a name nor a path.
Blueprint load_planned_model(const std::string& name_or_path);
/// The same for a recipe's model.path: where that folder has no config.json, but its last part is the name of a shipped
/// model ("/models/DeepSeek-V3"), that model; `said` is told so.
Blueprint load_recipe_model(const std::string& path, std::string* said);

}  // namespace moetune
