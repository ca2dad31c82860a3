#include "trainer/recipe/recipe_shelf.h"

#include <algorithm>
#include <filesystem>
#include <vector>

#include "parallel/base/error.h"
#include "parallel/base/files.h"
#include "parallel/base/program_files.h"

namespace moetune {
namespace {

namespace fs = std::filesystem;

std::vector<fs::path> shelf() {
  std::vector<fs::path> files;
  for (const auto& entry : fs::directory_iterator(program_files().recipes)) {
    if (entry.path().extension() == ".yaml") files.push_back(entry.path());
  }
  std::sort(files.begin(), files.end());
  return files;
}

}  // namespace

std::string list_recipes() {
  std::string lines;
  for (const fs::path& path : shelf()) {
    const std::string text = read_text_file(path.string());
    const std::string first = text.substr(0, text.find('\n'));
    lines += str(path.stem().string(),
                 std::string(std::max<size_t>(1, 32 - std::min<size_t>(31, path.stem().string().size())), ' '),
                 first.rfind("# ", 0) == 0 ? first.substr(2) : "", "\n");
  }
  return lines;
}

std::string read_recipe(const std::string& name) {
  std::string names;
  for (const fs::path& path : shelf()) {
    if (name == path.stem().string() || name == path.filename().string()) return read_text_file(path.string());
    names += (names.empty() ? "" : ", ") + path.stem().string();
  }
  throw UserError(str("no recipe '", name, "'; there are ", names));
}

std::string copy_recipe(const std::string& name, const std::string& file) {
  if (fs::exists(file)) throw UserError(str(file, ": exists already; name a new file"));
  write_text_atomically(file, read_recipe(name));
  return str(file, " written\n");
}

}  // namespace moetune
