// Which families there are, and the one that a config.json is of.
//
//   const Blueprint blueprint = load_blueprint("/models/DeepSeek-V3");
//
// A family is a function that maps its config.json to a blueprint, in a file of its own; this is where they are listed.
// What the program does not compute exactly as the model says is refused by name, and so are two keys that say
// different things of one number. Sizes are bounded, so that no product of them overflows.
#pragma once

#include <filesystem>
#include <string>
#include <vector>

#include <nlohmann/json_fwd.hpp>

#include "moe/blueprint.h"

namespace moetune {

/// Reads `folder`/config.json. Throws UserError naming file, key, value and what is allowed.
Blueprint load_blueprint(const std::filesystem::path& folder);
/// `place` stands for the file in messages.
Blueprint parse_blueprint(const nlohmann::json& config, const std::string& place);
/// Values of config.json's model_type that are read, in the order of the alphabet.
std::vector<std::string> known_model_types();

}  // namespace moetune
