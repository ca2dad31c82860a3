// The trained tensors of a checkpoint, whatever mesh wrote them: any part of any of them, put together from the ranks'
// files.
//
//   const SavedState saved(checkpoint);  // headers read, every tensor known to be there in full
//   saved.read(SavedKind::kMaster, name, block_of(parameter), first, shard);
//
// Each rank saves its own shards: runs of a tensor's numbers, one-dimensional, as master/NAME, first_moment/NAME and
// second_moment/NAME. The file's metadata says under NAME where a run belongs: {"whole": [E, R, I], "at": [e, 0, 0],
// "shape": [e', R, I], "first": n, "group": "experts", "layer": 3} - the shape of the tensor over all ranks; the box of
// it that the rank's replica group holds, by first index and shape, cut in any dimensions (experts in one, tensor
// parallelism in another); and the number of the box, row-major, that the run begins with; the group that recipes know
// the tensor by and the number of its layer; of experts' adapters that PEFT keeps as one tensor its key there
// ("joint"); of a stack over some experts "experts": [3, 17], whose rows these are. Biases of routers lie whole beside
// them as router_bias/BLOCK.
#pragma once

#include <torch/types.h>

#include <filesystem>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "lora/adapters/narrowing.h"
#include "lora/adapters/parameter.h"
#include "parallel/bytes/safetensors.h"
#include "trainer/state/manifest.h"

namespace moetune {

/// A box of a tensor.
struct TensorBlock {
  std::vector<int64_t> whole;  ///< shape of the tensor
  std::vector<int64_t> at;     ///< index of the box's first number
  std::vector<int64_t> shape;  ///< of the box
  int64_t numel() const;
  bool operator==(const TensorBlock&) const = default;
};

/// What a rank's parameter is of the tensor of its name.
TensorBlock block_of(const Parameter& parameter);
/// The metadata of a run that begins with number `first` of a block of the tensor that `info` describes.
std::string run_metadata(const TensorBlock& block, int64_t first, const ParameterInfo& info);

enum class SavedKind { kMaster, kFirstMoment, kSecondMoment };
/// "master/NAME"
std::string saved_name(SavedKind kind, const std::string& name);
std::string saved_bias_name(int64_t block);

class SavedState {
 public:
  /// Opens the files that the manifest names. UserError naming a tensor that is not there in full, or twice.
  explicit SavedState(const std::filesystem::path& checkpoint);

  const std::filesystem::path& checkpoint() const { return checkpoint_; }
  const Manifest& manifest() const { return manifest_; }
  /// Of trained tensors, sorted; stacks over experts with '*'.
  std::vector<std::string> names() const;
  /// Shape of the tensor over all ranks. UserError where the checkpoint has none of that name.
  const std::vector<int64_t>& shape(const std::string& name) const;
  /// What recipes call the maps that it belongs to; empty in checkpoints of versions that did not say.
  const std::string& group(const std::string& name) const;
  /// Number of its layer (LayerId::number()); none in checkpoints of versions that did not say.
  std::optional<int64_t> layer(const std::string& name) const;
  /// Key of the one tensor that PEFT keeps for all experts (ParameterInfo::joint_name); empty where it keeps one each.
  const std::string& joint(const std::string& name) const;
  /// Of a stack over some experts their numbers, in the order of its rows; empty: row e is expert e.
  const std::vector<int64_t>& experts(const std::string& name) const { return about_.at(name).experts; }
  /// The same by layer, of all stacks over some experts.
  ExpertsOfLayers chosen_experts() const;
  /// A box of a tensor, in the saved dtype. UserError where the box is of a tensor of another shape.
  at::Tensor read(SavedKind kind, const std::string& name, const TensorBlock& block) const;
  /// Numbers first, first + 1, ... of a box into `target`, which is one-dimensional.
  void read(SavedKind kind, const std::string& name, const TensorBlock& block, int64_t first,
            const at::Tensor& target) const;
  /// Blocks with a saved router bias.
  std::vector<int64_t> router_blocks() const;
  at::Tensor router_bias(int64_t block) const;

 private:
  /// Consecutive numbers of a box in one file.
  struct Run {
    const SafetensorsFile* file;
    int64_t first, count;
  };
  struct SavedBlock {
    TensorBlock block;
    std::vector<Run> runs;  ///< in order
  };
  void add_run(const SafetensorsFile& file, const std::string& name, const std::string& metadata);
  void require_whole() const;
  /// What is said of all runs of a tensor.
  struct About {
    std::string group, joint;
    std::optional<int64_t> layer;
    std::vector<int64_t> experts;
  };
  const std::vector<SavedBlock>& blocks_of(const std::string& name) const;
  static at::Tensor read_block_rows(SavedKind kind, const std::string& name, const SavedBlock& saved, int64_t first_row,
                                    int64_t num_rows);

  std::filesystem::path checkpoint_;
  Manifest manifest_;
  std::vector<std::unique_ptr<SafetensorsFile>> files_;
  std::map<std::string, std::vector<SavedBlock>> tensors_;
  std::map<std::string, About> about_;
  std::map<int64_t, const SafetensorsFile*> biases_;
};

}  // namespace moetune
