// Files that a command writes where the user says: a name given by mistake may be that of the data.
//
//   require_replaceable(to, [&] { return SafetensorsFile(to).names() == kNames; }, to, "logits of an earlier call");
#pragma once

#include <functional>
#include <string>

namespace moetune {

/// UserError, `place` in front, where something is at `to` that is no file of which `is_earlier` says so; a UserError
/// that this throws says no. `what`: that it does not hold.
void require_replaceable(const std::string& to, const std::function<bool()>& is_earlier, const std::string& place,
                         const std::string& what);

}  // namespace moetune
