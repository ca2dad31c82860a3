#include "parallel/base/files.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <filesystem>
#include <utility>

#include "parallel/base/error.h"
#include "parallel/base/text.h"

namespace moetune {
namespace {

[[noreturn]] void fail(const std::string& path, const char* action) {
  const int reason = errno;
  throw UserError(str(printable_line(path), ": cannot ", action, ": ", std::strerror(reason)));
}

// An std::string may hold a NUL, at which the system would silently cut the path.
const std::string& checked(const std::string& path) {
  if (path.empty()) throw UserError("a path is empty; name a file");
  if (path.find('\0') != std::string::npos) throw UserError(str(printable_line(path), ": the path holds a NUL byte"));
  return path;
}

thread_local std::string last_opened;

// Closes on every way out.
struct Descriptor {
  int value;
  ~Descriptor() {
    if (value >= 0) ::close(value);
  }
};

}  // namespace

const std::string& last_file_opened() { return last_opened; }

void fsync_folder_of(const std::string& path) {
  const std::filesystem::path parent = std::filesystem::path(path).parent_path();
  const std::string folder = parent.empty() ? "." : parent.string();
  const Descriptor descriptor{::open(folder.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC)};
  if (descriptor.value < 0) fail(folder, "open the folder");
  // Some network file systems know no fsync of folders and say EINVAL; there is nothing more to ask of them.
  if (::fsync(descriptor.value) != 0 && errno != EINVAL) fail(folder, "fsync the folder");
}

std::string read_text_file(const std::string& path) {
  const Descriptor descriptor{::open(checked(path).c_str(), O_RDONLY | O_CLOEXEC)};
  if (descriptor.value < 0) fail(path, "open");
  last_opened = path;
  std::string text;
  constexpr std::size_t kPiece = 1 << 16;
  constexpr std::size_t kLongest = std::size_t{1} << 30;
  std::size_t filled = 0;
  while (true) {
    if (text.size() - filled < kPiece) text.resize(std::max(text.size() * 2, filled + kPiece));
    const ssize_t count = ::read(descriptor.value, text.data() + filled, text.size() - filled);
    if (count < 0 && errno == EINTR) continue;
    if (count < 0) fail(path, "read");
    if (count == 0) break;
    filled += static_cast<std::size_t>(count);
    if (filled > kLongest) {
      throw UserError(str(printable_line(path), ": longer than 1 GiB, which no text file read here is; name another"));
    }
  }
  text.resize(filled);
  return text;
}

InputFile::InputFile(std::string path) : path_(std::move(path)) {
  // O_NONBLOCK: opening a pipe returns at once, to be refused below. It means nothing for regular files.
  Descriptor descriptor{::open(checked(path_).c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK)};
  if (descriptor.value < 0) fail(path_, "open");
  struct stat status;
  if (::fstat(descriptor.value, &status) != 0) fail(path_, "stat");
  if (!S_ISREG(status.st_mode)) {
    throw UserError(str(printable_line(path_), ": cannot open: not a regular file"));
  }
  last_opened = path_;
  identity_ = {static_cast<std::uint64_t>(status.st_dev), static_cast<std::uint64_t>(status.st_ino),
               static_cast<std::uint64_t>(status.st_size), status.st_mtim.tv_sec, status.st_mtim.tv_nsec};
  descriptor_ = std::exchange(descriptor.value, -1);
}

InputFile::~InputFile() { ::close(descriptor_); }

void InputFile::read(std::uint64_t offset, void* data, std::uint64_t size) const {
  auto* out = static_cast<char*>(data);
  while (size > 0) {
    const ssize_t count = ::pread(descriptor_, out, size, static_cast<off_t>(offset));  // at most 2 GiB at a time
    if (count < 0 && errno == EINTR) continue;
    if (count < 0) fail(path_, "read");
    if (count == 0) {
      throw UserError(str(path_, ": ends at byte ", offset, ", ", size, " bytes too early; was it cut while in use?"));
    }
    out += count;
    offset += static_cast<std::uint64_t>(count);
    size -= static_cast<std::uint64_t>(count);
  }
}

AtomicFile::AtomicFile(std::string path)
    : path_(std::move(path)), temporary_(str(checked(path_), ".tmp-", ::getpid())) {
  // The rename would put a file in the place of a device, a pipe or a folder.
  struct stat status;
  if (::stat(path_.c_str(), &status) == 0 && !S_ISREG(status.st_mode)) {
    throw UserError(str(printable_line(path_), ": is ", S_ISDIR(status.st_mode) ? "a folder" : "no regular file",
                        " and is not replaced; name a file"));
  }
  // A run that was killed may have left a file of this name: pids repeat, in containers at every start.
  ::unlink(temporary_.c_str());
  Descriptor descriptor{::open(temporary_.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666)};
  if (descriptor.value < 0) fail(temporary_, "create");
  stream_ = ::fdopen(descriptor.value, "wb");
  if (stream_ == nullptr) fail(temporary_, "open");
  descriptor.value = -1;  // the stream owns it
}

AtomicFile::~AtomicFile() {
  if (stream_ != nullptr) std::fclose(stream_);
  if (!renamed_) ::unlink(temporary_.c_str());
}

void AtomicFile::write(const void* data, std::size_t size) {
  MT_CHECK(stream_ != nullptr, path_, ": written to after commit");
  if (size > 0 && std::fwrite(data, 1, size, stream_) != size) fail(temporary_, "write");
}

void AtomicFile::commit() {
  MT_CHECK(stream_ != nullptr, path_, ": committed twice");
  if (std::fflush(stream_) != 0) fail(temporary_, "write");
  if (::fsync(::fileno(stream_)) != 0) fail(temporary_, "fsync");
  if (std::fclose(std::exchange(stream_, nullptr)) != 0) fail(temporary_, "close");
  if (::rename(temporary_.c_str(), path_.c_str()) != 0) fail(path_, "rename the finished file to this name");
  renamed_ = true;
  fsync_folder_of(path_);
}

void write_text_atomically(const std::string& path, std::string_view text) {
  AtomicFile file(path);
  file.write(text.data(), text.size());
  file.commit();
}

}  // namespace moetune
