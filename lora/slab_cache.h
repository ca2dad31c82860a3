// The file tier: packed frozen weights on a local disk, so that a second start neither reads the checkpoint's matrices
// nor quantises them.
//
//   SlabCache cache(folder);  // one model in one format: trainer/state/weight_cache.h chooses the folder
//   auto file = cache.open("layer-003-experts", matrices);  // null where the disk refuses
//   if (auto stored = file->find(17)) keep(stored->parts);  // verified
//   else file->put(17, weight.pack(read(matrices[17].name)));
//
// One safetensors file a slab, laid out for the whole model: every expert, every matrix uncut, so that what one mesh
// wrote any other reads.
//
//   sha256                  U8 [matrices, 32]   of each matrix's parts end to end; zeros: not there yet
//   model.layers.3.mlp.experts.0.gate_proj.weight/codes   U8, then its other parts (FrozenShape::parts), then the next
//
// A rank writes each matrix that it packs in its place, and the digest behind it. All who write a place write the same
// bytes, so ranks and runs may fill a file at once, and whatever ends one of them, or tears a write, leaves a matrix
// whose digest is zero or does not agree: such a matrix is packed anew. Nothing is flushed for the same reason. What
// cannot be written is said once and is no error.
#pragma once

#include <torch/types.h>

#include <atomic>
#include <filesystem>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

#include "lora/formats/frozen_shape.h"
#include "parallel/base/placed_file.h"

namespace moetune {

class SlabCache;

/// A matrix of a slab's file.
struct SlabMatrix {
  std::string name;   ///< Hugging Face key
  FrozenShape shape;  ///< of one unit, uncut
};

class SlabFile {
 public:
  /// A matrix's packed parts, on the CPU: views of the file, good as long as this lives.
  struct Stored {
    MappedBytes bytes;
    std::vector<at::Tensor> parts;
  };
  /// Nothing where the matrix is not there or damaged. Thread-safe.
  std::optional<Stored> find(size_t matrix) const;
  /// Writes a matrix's packed parts, which may be on any device.
  void put(size_t matrix, const std::vector<at::Tensor>& parts);

 private:
  friend class SlabCache;
  SlabFile(SlabCache& cache, const std::string& path, std::vector<SlabMatrix> matrices);

  SlabCache& cache_;
  std::vector<SlabMatrix> matrices_;
  std::vector<uint64_t> places_;  // first byte of each matrix in the file, and of the end
  uint64_t digests_;              // first byte of the digests
  std::optional<PlacedFile> file_;
};

class SlabCache {
 public:
  /// Of one process. Makes the folder if need be.
  explicit SlabCache(std::filesystem::path folder);

  /// The file of a slab, made if it is missing. Null, and said in complaints(), where it can neither be made nor read.
  std::unique_ptr<SlabFile> open(const std::string& slab, std::vector<SlabMatrix> matrices);

  const std::filesystem::path& folder() const { return folder_; }
  /// Packed bytes that were found and written so far, by this process.
  int64_t found_bytes() const { return found_bytes_; }
  int64_t written_bytes() const { return written_bytes_; }
  /// What went wrong so far, a line each, each kind once; empty: nothing.
  std::string complaints() const;

 private:
  friend class SlabFile;
  void stop_writing(const std::string& reason);
  void found_damaged(const std::string& what);

  std::filesystem::path folder_;
  std::atomic<int64_t> found_bytes_ = 0;
  std::atomic<int64_t> damaged_matrices_ = 0;
  int64_t written_bytes_ = 0;
  bool writes_ = true;
  mutable std::mutex saying_;
  std::string not_written_, first_damage_;
};

/// How far a slab's file is filled, for `moetune inspect`: matrices that it has, of how many; their bytes are not
/// verified. Nothing for a file that no cache wrote, or has only begun.
struct SlabFileState {
  int64_t layer = 0;
  int64_t matrices = 0, all_matrices = 0;
  int64_t bytes_on_disk = 0;  ///< what nobody wrote yet takes no place
};
std::optional<SlabFileState> slab_file_state(const std::filesystem::path& file);

}  // namespace moetune
