// A file of a fixed size that several processes fill at once, each piece at its own place. Whoever writes a place
// writes the same bytes there, so nothing is locked, and a process may end anywhere.
//
//   // made if need be; what nobody wrote yet is zeros
//   PlacedFile file("slab.safetensors", size, PlacedFile::Access::kFill);
//   file.write(offset, data, num_bytes);
//   const MappedBytes bytes = file.map(offset, num_bytes);  // a view of the disk's bytes, not a copy
//
// What the system refuses is a UserError with the path and the system's reason.
#pragma once

#include <cstdint>
#include <string>

namespace moetune {

/// A range of a file in memory, read-only, unmapped at the end. A page that the disk cannot deliver, or that another
/// process cut off, ends this one by SIGBUS.
class MappedBytes {
 public:
  MappedBytes() = default;
  MappedBytes(MappedBytes&& other) noexcept;
  MappedBytes& operator=(MappedBytes&& other) noexcept;
  ~MappedBytes();

  const std::uint8_t* data() const { return data_; }
  std::uint64_t size() const { return size_; }

 private:
  friend class PlacedFile;
  void* pages_ = nullptr;
  std::uint64_t page_bytes_ = 0;
  const std::uint8_t* data_ = nullptr;
  std::uint64_t size_ = 0;
};

class PlacedFile {
 public:
  enum class Access { kRead, kFill };
  /// Opens the file, which must be a regular one and no link. kFill makes it if it is missing and gives it `size` bytes
  /// whatever it had; kRead refuses one of another size.
  PlacedFile(std::string path, std::uint64_t size, Access access);
  ~PlacedFile();
  PlacedFile(const PlacedFile&) = delete;
  PlacedFile& operator=(const PlacedFile&) = delete;

  const std::string& path() const { return path_; }
  bool fills() const { return access_ == Access::kFill; }
  /// Thread-safe, like all that follows.
  void read(std::uint64_t offset, void* data, std::uint64_t num_bytes) const;
  /// The bytes are the system's to bring to the disk when it likes.
  void write(std::uint64_t offset, const void* data, std::uint64_t num_bytes) const;
  /// Maps a range and has its pages read at once.
  MappedBytes map(std::uint64_t offset, std::uint64_t num_bytes) const;

 private:
  std::string path_;
  std::uint64_t size_;
  Access access_;
  int descriptor_ = -1;
};

}  // namespace moetune
