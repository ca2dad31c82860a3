// A call of scripts/draw, which makes a page or a picture of facts that the program knows.
//
//   write_text_atomically("plan.html", drawn("plan", plan_json(plan, {}).dump()));
//   write_text_atomically("mesh.svg", drawn("mesh", mesh_json(mesh)));
#pragma once

#include <string>

namespace moetune {

/// `what`: a word of scripts/draw; `json`: the file that it reads. UserError where what is asked for cannot be drawn,
/// or no Python can be started.
std::string drawn(const std::string& what, const std::string& json);

}  // namespace moetune
