// What one rank puts into a checkpoint: its shards of masters and both moments, and on the first rank of a stage the
// biases of its routers; as they stand in the optimizer, or copied, so that training may go on while they are written.
//
//   CheckpointPart part(model, optimizer, mesh);               // views: nothing is copied
//   part.copy_to(memory);                                      // the optimizer may go on
//   const auto [name, file] = part.write(folder);              // from any thread
#pragma once

#include <torch/types.h>

#include <filesystem>
#include <string>
#include <utility>
#include <vector>

#include "moe/model.h"
#include "parallel/bytes/safetensors.h"
#include "trainer/state/manifest.h"
#include "trainer/state/saved_state.h"
#include "trainer/update/optimizer.h"

namespace moetune {

class CheckpointPart {
 public:
  /// Of this rank. The optimizer must be flushed, and stay as it is until the part is written or copied.
  CheckpointPart(Model& model, Optimizer& optimizer, Mesh& mesh);

  /// From now on this is a copy in `memory` (uint8, on the host), which is made anew where it is too small: kept for
  /// the next part, its pages need no touching again.
  void copy_to(at::Tensor& memory);
  /// Writes state-RANK-of-RANKS.safetensors, durably, and returns its name and how the manifest describes it; an empty
  /// name where this rank has nothing to save. UserError naming the file where the disk refuses. No collective.
  std::pair<std::string, Manifest::File> write(const std::filesystem::path& folder) const;

  /// Host bytes of a copy of shards of so many numbers.
  static int64_t copied_bytes(int64_t shard_numbers, at::ScalarType compute);

 private:
  std::string name_;
  std::vector<std::pair<std::string, at::Tensor>> tensors_;
  StringMap metadata_;
};

/// Calls `visit(kind, tensor)` for what an optimizer holds of a group.
template <typename Visit>
void for_each_kind(const Optimizer::Shard& shard, const Visit& visit) {
  visit(SavedKind::kMaster, shard.master);
  visit(SavedKind::kFirstMoment, shard.first_moment);
  visit(SavedKind::kSecondMoment, shard.second_moment);
}

/// SHA-256 and size of a file, read from the disk.
Manifest::File described_file(const std::filesystem::path& path);

}  // namespace moetune
