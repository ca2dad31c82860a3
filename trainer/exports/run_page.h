// The page of a run: an HTML file that shows how it goes or went, what it took, and its recipe.
//
//   write_text_atomically("page.html", run_page({"runs/a"}));
//   write_text_atomically("page.html", run_page({"runs/a", "runs/b"}));   // beside each other
//
// scripts/draw draws it, from what the run folder holds; here is said which runs go on.
#pragma once

#include <filesystem>
#include <string>
#include <vector>

namespace moetune {

/// UserError where a folder is none of a run, where there are more than two, or where no Python can be started.
std::string run_page(const std::vector<std::filesystem::path>& runs);

}  // namespace moetune
