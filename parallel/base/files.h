// Files: read whole, read in ranges, written so that a reader sees the old bytes or the new ones and never a part.
//
//   const std::string text = read_text_file("recipe.yaml");
//   InputFile weights("model.safetensors");
//   weights.read(offset, buffer, num_bytes);            // from any thread
//   write_text_atomically("run.json", text);
//   AtomicFile file("state.bin");
//   file.write(data, size);
//   file.commit();                                      // without it nothing appears under the name
//
// What the system refuses is a UserError with the path and the system's reason.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <string>
#include <string_view>

namespace moetune {

/// All bytes of the file, which may also be a pipe. UserError beyond 1 GiB: a device would never end.
std::string read_text_file(const std::string& path);
/// The file that this thread opened last with one of these functions: where an error of a parser, which knows no path,
/// comes from. Empty if none.
const std::string& last_file_opened();

/// What tells whether a path still leads to the same bytes.
struct FileIdentity {
  std::uint64_t device = 0;
  std::uint64_t inode = 0;
  std::uint64_t size = 0;  ///< bytes
  std::int64_t modified_s = 0;
  std::int64_t modified_ns = 0;
  bool operator==(const FileIdentity&) const = default;
};

/// A regular file open for reading.
class InputFile {
 public:
  /// UserError if the file is missing, unreadable, or no regular file (a pipe would block for ever).
  explicit InputFile(std::string path);
  ~InputFile();
  InputFile(const InputFile&) = delete;
  InputFile& operator=(const InputFile&) = delete;

  const std::string& path() const { return path_; }
  /// Bytes, as of opening.
  std::uint64_t size() const { return identity_.size; }
  const FileIdentity& identity() const { return identity_; }
  /// Copies `size` bytes from `offset` on to `data`. Thread-safe. UserError if the file ends before.
  void read(std::uint64_t offset, void* data, std::uint64_t size) const;

 private:
  std::string path_;
  int descriptor_ = -1;
  FileIdentity identity_;
};

/// A file that appears under its name whole or not at all. The bytes go to PATH.tmp-<pid>; commit() makes them durable
/// and renames. One writer per path: two in the same process, or of the same pid on two hosts, would share the
/// temporary file.
class AtomicFile {
 public:
  explicit AtomicFile(std::string path);
  /// Removes the temporary file unless committed.
  ~AtomicFile();
  AtomicFile(const AtomicFile&) = delete;
  AtomicFile& operator=(const AtomicFile&) = delete;

  const std::string& path() const { return path_; }
  void write(const void* data, std::size_t size);
  /// Flushes, fsyncs, renames over PATH and fsyncs the folder, in this order: each step is what makes the next one safe
  /// against a power cut. Call once, last.
  void commit();

 private:
  std::string path_;
  std::string temporary_;
  std::FILE* stream_ = nullptr;
  bool renamed_ = false;
};

/// Makes a rename in the folder that holds `path` durable.
void fsync_folder_of(const std::string& path);

/// Replaces the file's content by `text`, atomically and durably.
void write_text_atomically(const std::string& path, std::string_view text);

}  // namespace moetune
