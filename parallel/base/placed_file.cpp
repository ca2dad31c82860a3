#include "parallel/base/placed_file.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <utility>

#include "parallel/base/error.h"
#include "parallel/base/text.h"

namespace moetune {
namespace {

[[noreturn]] void fail(const std::string& path, const char* action, int reason) {
  throw UserError(str(printable_line(path), ": cannot ", action, ": ", std::strerror(reason)));
}

}  // namespace

MappedBytes::MappedBytes(MappedBytes&& other) noexcept { *this = std::move(other); }

MappedBytes& MappedBytes::operator=(MappedBytes&& other) noexcept {
  std::swap(pages_, other.pages_);
  std::swap(page_bytes_, other.page_bytes_);
  std::swap(data_, other.data_);
  std::swap(size_, other.size_);
  return *this;
}

MappedBytes::~MappedBytes() {
  if (pages_ != nullptr) ::munmap(pages_, page_bytes_);
}

PlacedFile::PlacedFile(std::string path, std::uint64_t size, Access access)
    : path_(std::move(path)), size_(size), access_(access) {
  descriptor_ = ::open(path_.c_str(), fills() ? O_RDWR | O_CREAT | O_CLOEXEC : O_RDONLY | O_CLOEXEC, 0666);
  if (descriptor_ < 0) fail(path_, fills() ? "open for writing" : "open", errno);
  struct stat status;
  const char* action = "stat";
  int reason = ::fstat(descriptor_, &status) == 0 ? 0 : errno;
  const bool differs = reason == 0 && static_cast<std::uint64_t>(status.st_size) != size_;
  if (differs && fills()) {
    action = "set the size";
    reason = ::ftruncate(descriptor_, static_cast<off_t>(size_)) == 0 ? 0 : errno;
  }
  if (reason == 0 && (fills() || !differs)) return;
  ::close(descriptor_);
  if (reason != 0) fail(path_, action, reason);
  throw UserError(str(path_, ": has ", status.st_size, " bytes, ", size_, " are due"));
}

PlacedFile::~PlacedFile() { ::close(descriptor_); }

void PlacedFile::read(std::uint64_t offset, void* data, std::uint64_t num_bytes) const {
  auto* out = static_cast<char*>(data);
  while (num_bytes > 0) {
    const ssize_t count = ::pread(descriptor_, out, num_bytes, static_cast<off_t>(offset));
    if (count < 0 && errno == EINTR) continue;
    if (count < 0) fail(path_, "read", errno);
    if (count == 0) throw UserError(str(path_, ": ends at byte ", offset, ", ", num_bytes, " bytes too early"));
    out += count;
    offset += static_cast<std::uint64_t>(count);
    num_bytes -= static_cast<std::uint64_t>(count);
  }
}

void PlacedFile::write(std::uint64_t offset, const void* data, std::uint64_t num_bytes) const {
  MT_CHECK(fills() && offset + num_bytes <= size_, path_, ": ", num_bytes, " bytes at ", offset, " of ", size_);
  const auto* in = static_cast<const char*>(data);
  while (num_bytes > 0) {
    const ssize_t count = ::pwrite(descriptor_, in, num_bytes, static_cast<off_t>(offset));
    if (count < 0 && errno == EINTR) continue;
    if (count < 0) fail(path_, "write", errno);
    in += count;
    offset += static_cast<std::uint64_t>(count);
    num_bytes -= static_cast<std::uint64_t>(count);
  }
}

MappedBytes PlacedFile::map(std::uint64_t offset, std::uint64_t num_bytes) const {
  MT_CHECK(num_bytes > 0 && offset + num_bytes <= size_, path_, ": ", num_bytes, " bytes at ", offset, " of ", size_);
  const std::uint64_t page = static_cast<std::uint64_t>(::sysconf(_SC_PAGESIZE));
  const std::uint64_t first = offset / page * page;
  MappedBytes bytes;
  // Populated: pages come in long reads instead of one fault each.
  void* pages = ::mmap(nullptr, offset - first + num_bytes, PROT_READ, MAP_SHARED | MAP_POPULATE, descriptor_,
                       static_cast<off_t>(first));
  if (pages == MAP_FAILED) fail(path_, "map", errno);
  bytes.pages_ = pages;
  bytes.page_bytes_ = offset - first + num_bytes;
  bytes.data_ = static_cast<const std::uint8_t*>(pages) + (offset - first);
  bytes.size_ = num_bytes;
  return bytes;
}

}  // namespace moetune
