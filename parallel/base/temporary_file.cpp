#include "parallel/base/temporary_file.h"

#include <unistd.h>

#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <filesystem>

#include "parallel/base/error.h"

namespace moetune {

TemporaryFile::TemporaryFile(std::string_view text) {
  std::error_code failure;
  const std::filesystem::path folder = std::filesystem::temp_directory_path(failure);
  path_ = ((failure ? std::filesystem::path("/tmp") : folder) / "moetune-XXXXXX").string();
  const int file = ::mkstemp(path_.data());
  if (file < 0) throw UserError(str(path_, ": ", std::strerror(errno)));
  while (!text.empty()) {
    const ssize_t written = ::write(file, text.data(), text.size());
    if (written < 0 && errno == EINTR) continue;
    if (written < 0) {
      const std::string reason = std::strerror(errno);
      ::close(file);
      ::unlink(path_.c_str());
      throw UserError(str(path_, ": ", reason));
    }
    text.remove_prefix(static_cast<size_t>(written));
  }
  ::close(file);
}

TemporaryFile::~TemporaryFile() { ::unlink(path_.c_str()); }

}  // namespace moetune
