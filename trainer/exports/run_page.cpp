#include "trainer/exports/run_page.h"

#include <optional>

#include "parallel/base/program_files.h"
#include "parallel/base/python_call.h"
#include "trainer/run/run_lock.h"

namespace moetune {

std::string run_page(const std::vector<std::filesystem::path>& runs) {
  const ProgramFiles files = program_files();
  std::vector<std::string> command{chosen_python(files), files.draw.string(), "run"}, holders;
  for (const std::filesystem::path& run : runs) {
    // With a folder before it a path is never taken for an option.
    const std::string path = run.is_relative() && run.string().starts_with('-') ? "./" + run.string() : run.string();
    command.push_back(path);
    const std::optional<LockHolder> holder = read_run_lock(run);
    if (holder && !is_gone(*holder)) holders.insert(holders.end(), {"--holder", path, holder->text()});
  }
  command.insert(command.end(), holders.begin(), holders.end());
  return python_output(command, "drawing the page", ErrorText::kThrown);
}

}  // namespace moetune
