// A file for as long as another program reads it.
//
//   const TemporaryFile file(text);
//   python_output({python, script, file.path()}, "drawing the page");
#pragma once

#include <string>
#include <string_view>

namespace moetune {

/// In the system's folder for temporary files; only this user may read it. UserError where it cannot be written.
class TemporaryFile {
 public:
  explicit TemporaryFile(std::string_view text);
  ~TemporaryFile();
  TemporaryFile(const TemporaryFile&) = delete;
  TemporaryFile& operator=(const TemporaryFile&) = delete;

  const std::string& path() const { return path_; }

 private:
  std::string path_;
};

}  // namespace moetune
