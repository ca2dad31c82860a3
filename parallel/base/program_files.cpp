#include "parallel/base/program_files.h"

#include <optional>

#include "parallel/base/error.h"
#include "parallel/base/files.h"
#include "parallel/base/text.h"

namespace moetune {
namespace {

namespace fs = std::filesystem;

/// What stands in an installed tree: one line, the path of a Python.
constexpr const char* kRecordedPython = "python";

bool runs(const fs::path& path) {
  std::error_code ignored;
  return fs::is_regular_file(path, ignored);
}

std::optional<ProgramFiles> files_in(const fs::path& root) {
  std::error_code ignored;
  ProgramFiles files{root / "recipes", root / "scripts" / "prepare", root / "scripts" / "draw", "python3"};
  for (const fs::path& folder : {files.recipes, files.prepare, files.draw}) {
    if (!fs::is_directory(folder, ignored)) return std::nullopt;
  }
  fs::path python = root / ".venv" / "bin" / "python";
  if (runs(root / kRecordedPython)) {
    const std::string text = read_text_file((root / kRecordedPython).string());
    python = text.substr(0, text.find('\n'));
  }
  if (runs(python)) files.python = python.string();
  return files;
}

}  // namespace

ProgramFiles program_files_of(const fs::path& executable, const fs::path& checkout) {
  const fs::path folder = executable.parent_path();
  const fs::path places[] = {folder.parent_path() / "share" / "moetune", folder.parent_path(), checkout};
  std::string tried;
  for (const fs::path& place : places) {
    if (place.empty()) continue;
    if (std::optional<ProgramFiles> files = files_in(place)) return *std::move(files);
    tried += str("\n  ", printable_line(place.string()));
  }
  throw UserError(str("the program's recipes and Python are not where they belong; looked into", tried,
                      "\n  install the program with its files (cmake --install), and move bin/ and share/ together"));
}

ProgramFiles program_files() {
  std::error_code failure;
  const fs::path executable = fs::read_symlink("/proc/self/exe", failure);
  return program_files_of(failure ? fs::path() : executable, MOETUNE_SOURCE_DIR);
}

}  // namespace moetune
