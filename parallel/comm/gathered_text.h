// A text of each rank, on every rank: what a collective decision needs besides numbers (what was found damaged, digests
// of files).
//
//   for (const std::string& damage : gathered_text(mesh.world(), damage_here)) ...
#pragma once

#include <string>
#include <vector>

#include "parallel/comm/communicator.h"

namespace moetune {

/// The texts of ranks 0, 1, ... of the group, the empty ones too. Waits. Collective over the group.
std::vector<std::string> gathered_text(Communicator& group, const std::string& text);

}  // namespace moetune
