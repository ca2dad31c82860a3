// What a finished or running job has saved: the newest whole checkpoint of a run folder, or one checkpoint, tensor by
// tensor under Hugging Face names, whatever mesh wrote it.
//
//   SavedRun saved("runs/v3-attention");  // or runs/v3-attention/checkpoints/step-00000100
//   at::Tensor b = saved.read("model.layers.3.mlp.experts.17.gate_proj.lora_B.weight");
#pragma once

#include <torch/types.h>

#include <filesystem>
#include <map>
#include <string>
#include <vector>

#include "trainer/recipe/recipe.h"
#include "trainer/state/saved_state.h"

namespace moetune {

/// One linear map with an adapter.
struct SavedAdapter {
  std::string path;     ///< of the module: "model.layers.3.mlp.experts.17.gate_proj"
  std::string module;   ///< the same with '*' for the expert of a stack, as the blueprint has it
  int64_t expert = -1;  ///< of a stack
  std::string group;    ///< attention, dense_mlp, shared_expert, experts, router
  std::string leaf;     ///< "gate_proj"
  /// of a stack whose adapters PEFT keeps as one tensor for all experts: the module that it names it after
  std::string joint;
  int64_t layer = 0;
  int64_t rank = 0, inputs = 0, outputs = 0;  ///< A is [rank, inputs], B is [outputs, rank]
  double scale = 0.0;                         ///< delta W = scale * B A
};

class SavedRun {
 public:
  /// Checks every file of the checkpoint against its manifest; damaged newer checkpoints of a run folder are warned of
  /// and passed over. UserError when there is no whole one.
  explicit SavedRun(const std::filesystem::path& run_or_checkpoint);

  const std::filesystem::path& checkpoint() const { return state_.checkpoint(); }
  const SavedState& state() const { return state_; }
  const Recipe& recipe() const { return recipe_; }
  int64_t step() const { return state_.manifest().step; }

  /// Names of all trained tensors, sorted; one an expert.
  std::vector<std::string> names() const;
  bool has(const std::string& name) const { return places_.count(name) > 0; }
  std::vector<int64_t> shape(const std::string& name) const;
  /// The master copy, fp32 (fp64 masters are rounded).
  at::Tensor read(const std::string& name) const;

  /// All adapters, sorted by path; empty for `adapter: none`.
  const std::vector<SavedAdapter>& adapters() const { return adapters_; }
  /// Names of the model's tensors that trained themselves, sorted, one an expert.
  std::vector<std::string> trained_tensors() const;
  /// Layers with a saved router, the MTP module's last.
  std::vector<int64_t> router_layers() const { return state_.router_blocks(); }
  /// Correction bias of the router of `layer`: fp32 [E].
  at::Tensor router_bias(int64_t layer) const;
  /// Whether training moved the biases (router.bias: update).
  bool router_bias_moved() const { return recipe_.router.bias == RouterBias::kUpdate; }
  /// Layer number of the MTP module; -1 where the run had none.
  int64_t mtp_layer() const;

  /// For moetune_export.json: where an export came from.
  std::string origin() const;

 private:
  /// Where a tensor lies: all of the saved tensor, or one expert of a saved stack.
  struct Place {
    std::string saved_name;
    TensorBlock block;
    int64_t expert = -1;  ///< whose row of a stack it is; -1: all of the tensor
  };
  const Place& place_of(const std::string& name) const;
  void index_tensors();
  void index_adapters();

  SavedState state_;
  Recipe recipe_;
  std::map<std::string, Place> places_;
  std::vector<SavedAdapter> adapters_;
};

/// The checkpoint of a run folder with the least held-out loss, as the newest whole one knows it
/// (checkpoint.keep_best). UserError for what is no run folder, a run that kept none, or a best one that is damaged.
std::filesystem::path best_checkpoint(const std::filesystem::path& run);

/// The group of the linear map at `path`, as recipes name it: for adapters of which nothing but names is there.
std::string adapter_group(const std::string& path);
/// N of "...model.layers.N...."; -1 without one. For checkpoints of versions that did not save it.
int64_t layer_of_name(const std::string& name);

}  // namespace moetune
