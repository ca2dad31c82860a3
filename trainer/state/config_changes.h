// How two config.json of a model differ in what is computed.
//
//   for (const ConfigChange& change : config_changes(saved_text, text_now, path)) refuse(change.key);
#pragma once

#include <string>
#include <vector>

namespace moetune {

struct ConfigChange {
  std::string key;        ///< "rope_scaling.factor"
  std::string then, now;  ///< JSON; "absent"
};

/// Nothing where both mean the same model (moe/config.h), whatever they say beside that: versions, names of classes,
/// how the weights are stored, which their digest decides. Otherwise all keys whose values differ. UserError, with
/// `where` in front, for what is no configuration of a model that moetune trains.
std::vector<ConfigChange> config_changes(const std::string& then, const std::string& now, const std::string& where);

}  // namespace moetune
