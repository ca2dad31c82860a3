// What is fuzzed: a folder of valid files, and what reads them.
#pragma once

#include <filesystem>
#include <functional>
#include <string>
#include <vector>

namespace moetune {

struct FuzzTarget {
  std::string name;
  /// Writes valid files into an empty folder.
  std::function<void(const std::filesystem::path& folder)> prepare;
  /// Those that are damaged, one or two a case, relative to the folder.
  std::vector<std::string> files;
  /// Reads the folder as the program does. May throw UserError, and nothing else; of the valid files not even that.
  std::function<void(const std::filesystem::path& folder)> read;
};

std::vector<FuzzTarget> fuzz_targets();

}  // namespace moetune
