#include "trainer/state/checkpoint_part.h"

#include <cstdio>

#include "parallel/base/ceil_div.h"
#include "parallel/base/sha256.h"
#include "parallel/bytes/tensor_io.h"

namespace moetune {
namespace {

constexpr int64_t kKinds = 3;      // master and two moments
constexpr int64_t kAlignment = 8;  // of a tensor in a copy, for any dtype

int64_t aligned(int64_t bytes) { return ceil_div(bytes, kAlignment) * kAlignment; }

}  // namespace

CheckpointPart::CheckpointPart(Model& model, Optimizer& optimizer, Mesh& mesh) {
  const std::vector<FlatGroup>& groups = optimizer.partition().groups();
  for (size_t i = 0; i < groups.size(); ++i) {
    // What two stages hold is the first one's to save.
    if (groups[i].on_first_and_last_stage() && !model.stage.is_first()) continue;
    for (const FlatGroup::Piece& piece : groups[i].own_pieces()) {
      const std::string& name = piece.parameter->name();
      metadata_[name] = run_metadata(block_of(*piece.parameter), piece.first, piece.parameter->info());
      for_each_kind(optimizer.shards()[i], [&](SavedKind kind, const at::Tensor& shard) {
        tensors_.emplace_back(saved_name(kind, name), shard.narrow(0, piece.in_shard, piece.count));
      });
    }
  }
  for (const Block& block : model.blocks) {
    if (mesh.stage().rank() > 0 || !block.has_correction_bias()) continue;
    // A copy: the bias moves with each step.
    tensors_.emplace_back(saved_bias_name(block.layer().number()),
                          block.router()->bias().to(at::kCPU, /*non_blocking=*/false, /*copy=*/true));
  }
  char name[64];
  std::snprintf(name, sizeof name, "state-%05ld-of-%05ld.safetensors", static_cast<long>(mesh.world().rank()),
                static_cast<long>(mesh.world().size()));
  name_ = name;
}

void CheckpointPart::copy_to(at::Tensor& memory) {
  at::NoGradGuard no_grad;
  int64_t bytes = 0;
  for (const auto& [name, tensor] : tensors_) bytes += aligned(static_cast<int64_t>(tensor.nbytes()));
  if (!memory.defined() || memory.numel() < bytes) {
    memory = at::Tensor();  // first: never two at a time
    memory = at::empty({bytes}, at::kByte);
  }
  int64_t first = 0;
  for (auto& [name, tensor] : tensors_) {
    const auto size = static_cast<int64_t>(tensor.nbytes());
    at::Tensor copy = memory.narrow(0, first, size).view(tensor.scalar_type()).view(tensor.sizes());
    copy.copy_(tensor);
    tensor = copy;
    first += aligned(size);
  }
}

std::pair<std::string, Manifest::File> CheckpointPart::write(const std::filesystem::path& folder) const {
  if (tensors_.empty()) return {};
  write_tensors((folder / name_).string(), tensors_, metadata_);
  return {name_, described_file(folder / name_)};
}

int64_t CheckpointPart::copied_bytes(int64_t shard_numbers, at::ScalarType compute) {
  return shard_numbers * kKinds * static_cast<int64_t>(c10::elementSize(accumulate_dtype(compute)));
}

Manifest::File described_file(const std::filesystem::path& path) {
  return {sha256_of_file(path.string()), static_cast<int64_t>(std::filesystem::file_size(path))};
}

}  // namespace moetune
