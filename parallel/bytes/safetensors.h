// safetensors files: named tensors in one file, many files as one model folder, and the writer.
//
//   SafetensorsFolder model("/models/DeepSeek-V3");              // headers and index checked, no tensor read
//   const TensorInfo& info = model.at("model.norm.weight");      // or find(), nullptr if absent
//   model.read(info, 0, info.bytes, buffer);                     // any byte range, from any thread
//
//   SafetensorsWriter writer(path, {{"a", DType::kF32, {2, 3}}}, {});
//   writer.append("a", data, 24);
//   writer.commit();
//
// Format: https://github.com/huggingface/safetensors (README, "Format"). A file is 8 bytes little-endian N, N bytes of
// JSON header, then the tensors, row-major, without holes. Files are strangers' data: what the format forbids is a
// UserError that names the file, the tensor and the rule. tensor_io.h makes torch tensors of it.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "parallel/base/files.h"

namespace moetune {

/// All element types of the format. kF8E4M3 is the "fn" kind (finite, one NaN); kF8E8M0 is a power-of-two scale.
enum class DType {
  kBool,
  kF4,
  kF6E2M3,
  kF6E3M2,
  kU8,
  kI8,
  kF8E5M2,
  kF8E4M3,
  kF8E8M0,
  kF8E4M3Fnuz,
  kF8E5M2Fnuz,
  kI16,
  kU16,
  kF16,
  kBF16,
  kI32,
  kU32,
  kF32,
  kC64,
  kF64,
  kI64,
  kU64,
};
/// Bits of one element: 4 to 64; kF4 and the kF6 types do not fill bytes.
int size_in_bits(DType dtype);
/// The name in the header, for instance "BF16".
const char* dtype_name(DType dtype);
std::optional<DType> dtype_of_name(std::string_view name);
/// Bytes of a tensor; nothing if the count overflows 63 bits, a dim is negative, or the bits do not fill whole bytes.
std::optional<std::uint64_t> size_in_bytes(DType dtype, const std::vector<std::int64_t>& shape);

/// The longest header that readers accept, in bytes: the cap of the reference implementation.
constexpr std::uint64_t kMaxHeaderBytes = 100'000'000;

using StringMap = std::map<std::string, std::string>;

/// Where a tensor lies.
struct TensorInfo {
  std::string name;
  DType dtype = DType::kF32;
  std::vector<std::int64_t> shape;  ///< empty for a scalar; dims may be zero
  std::string file;                 ///< path
  std::uint64_t begin = 0;          ///< first byte, counted from the start of the file
  std::uint64_t bytes = 0;
  std::int64_t numel() const;
};

/// One file. The constructor reads and checks the header and closes the file again; the first read() opens it for good
/// and refuses a file that has changed since. Thread-safe.
class SafetensorsFile {
 public:
  explicit SafetensorsFile(std::string path, Links links = Links::kFollow);

  const std::string& path() const { return path_; }
  const TensorInfo* find(std::string_view name) const;
  /// UserError that names the file and the nearest names.
  const TensorInfo& at(std::string_view name) const;
  std::vector<std::string> names() const;  ///< sorted
  std::uint64_t total_bytes() const;       ///< of all tensors, without the header
  const StringMap& metadata() const { return metadata_; }
  const FileIdentity& identity() const { return identity_; }
  /// SHA-256 of the header's text: names, types, shapes and places of all tensors.
  const std::string& header_digest() const { return header_digest_; }
  /// Copies bytes [first_byte, first_byte + num_bytes) of a tensor of this file.
  void read(const TensorInfo& info, std::uint64_t first_byte, std::uint64_t num_bytes, void* destination) const;

 private:
  const InputFile& opened() const;

  std::string path_;
  Links links_;
  FileIdentity identity_;
  std::string header_digest_;
  std::map<std::string, TensorInfo, std::less<>> tensors_;
  StringMap metadata_;
  mutable std::mutex opening_;
  mutable std::unique_ptr<InputFile> input_;
};

/// The weights of a model folder: model.safetensors, the shards that model.safetensors.index.json names, or without an
/// index the complete set model-00001-of-N.safetensors .. model-N-of-N. All headers are checked on opening. An index
/// decides: a tensor that lies in a shard but is not mapped to it does not exist. No path of the index leaves the
/// folder: a shard is a plain file name. Links of the folder are followed to regular files anywhere where the folder
/// belongs to the user that runs or to root; in the folder of another one they lead into that folder or, for a snapshot
/// of a Hugging Face cache (ROOT/snapshots/REVISION), into ROOT/blobs.
class SafetensorsFolder {
 public:
  explicit SafetensorsFolder(std::string folder);

  const std::string& path() const { return folder_; }
  const TensorInfo* find(std::string_view name) const;
  /// UserError that names the folder and the nearest names.
  const TensorInfo& at(std::string_view name) const;
  std::vector<std::string> names() const;  ///< sorted
  std::uint64_t total_bytes() const;       ///< of all tensors, without headers
  /// The files that hold its tensors, by path.
  std::vector<const SafetensorsFile*> files() const;
  /// That of the single file, or of the first shard in the order of names.
  const StringMap& metadata() const;
  /// Copies bytes [first_byte, first_byte + num_bytes) of a tensor of this folder. Thread-safe.
  void read(const TensorInfo& info, std::uint64_t first_byte, std::uint64_t num_bytes, void* destination) const;

 private:
  const SafetensorsFile& open_shard(const std::string& name);
  void open_index();
  void open_unindexed(const std::vector<std::string>& shards);
  void take_all(const SafetensorsFile& file);

  std::string folder_;
  std::map<std::string, std::unique_ptr<SafetensorsFile>> files_;  // by path
  std::map<std::string_view, const TensorInfo*> tensors_;          // both point into files_
};

/// A tensor to be written. Name and metadata are UTF-8.
struct TensorToWrite {
  std::string name;
  DType dtype;
  std::vector<std::int64_t> shape;
};
/// What a file of these tensors begins with: length and header, a multiple of 8 bytes. The data follows in the order of
/// `specs`. The metadata always says {"format": "pt"}: readers of transformers refuse files that do not. `path` is for
/// messages.
std::string safetensors_header(const std::string& path, const std::vector<TensorToWrite>& specs, StringMap metadata);

/// Writes one file, tensor after tensor, without holding it in memory; it appears under its name at commit() alone.
class SafetensorsWriter {
 public:
  using Spec = TensorToWrite;
  /// Writes the header. The data follows in the order of `specs`; begin with the widest dtype if readers should find
  /// all tensors aligned.
  SafetensorsWriter(const std::string& path, const std::vector<Spec>& specs, StringMap metadata);

  /// The next bytes of the tensor, which may come in several pieces. Tensors come in declared order; those of zero
  /// bytes may be left out.
  void append(std::string_view name, const void* data, std::uint64_t size);
  /// Makes the file durable and visible. InternalError if bytes are missing.
  void commit();

 private:
  struct Pending {
    std::string name;
    std::uint64_t missing;  // bytes
  };
  void skip_complete();

  AtomicFile file_;
  std::vector<Pending> pending_;
  std::size_t next_ = 0;  // the first of pending_ that misses bytes
};

}  // namespace moetune
