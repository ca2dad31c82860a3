// Where the program's own files lie: recipes, its Python (data preparation, drawing), and the Python that runs both.
//
//   for (const auto& entry : std::filesystem::directory_iterator(program_files().recipes)) ...
//
// `cmake --install` puts them beside the executable, so that the tree can be moved; a build folder's program finds
// those of its checkout.
//
//   PREFIX/bin/moetune      PREFIX/share/moetune/{recipes, scripts/prepare, scripts/draw, python}
//   CHECKOUT/build/moetune  CHECKOUT/{recipes, scripts/prepare, scripts/draw, .venv/bin/python}
#pragma once

#include <filesystem>
#include <string>

namespace moetune {

struct ProgramFiles {
  std::filesystem::path recipes;  ///< folder of *.yaml
  std::filesystem::path prepare;  ///< folder that Python runs (parallel/base/python_call.h)
  std::filesystem::path draw;     ///< the same
  /// Of the checkout, or the one that was recorded when the tree was installed; "python3" where that is gone.
  std::string python;
};

/// Those of this process (/proc/self/exe). UserError that names the places looked at where there are none.
ProgramFiles program_files();
/// Those of a program that lies at `executable`; `checkout` is the last place that is looked at.
ProgramFiles program_files_of(const std::filesystem::path& executable, const std::filesystem::path& checkout);

}  // namespace moetune
