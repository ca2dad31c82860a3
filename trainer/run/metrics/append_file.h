// A file that only grows: what has been appended is with the operating system before append returns, so a reader sees
// it and a killed process loses nothing of it.
//
//   AppendFile file("runs/a/log.jsonl", AppendFile::Mode::kCreate);
//   file.append("one line\n");
#pragma once

#include <string>
#include <string_view>

namespace moetune {

class AppendFile {
 public:
  enum class Mode {
    kCreate,    ///< the file must not exist yet
    kContinue,  ///< appends to what is there; creates the file where there is none
  };
  /// Throws UserError when the file cannot be opened, is a link or no regular file, or exists and must not.
  AppendFile(std::string path, Mode mode);
  ~AppendFile();
  AppendFile(const AppendFile&) = delete;
  AppendFile& operator=(const AppendFile&) = delete;

  /// Writes all bytes in one piece where the system allows it. Throws UserError naming the file (a full disk, for one).
  void append(std::string_view bytes);
  const std::string& path() const { return path_; }

 private:
  std::string path_;
  int descriptor_ = -1;
};

}  // namespace moetune
