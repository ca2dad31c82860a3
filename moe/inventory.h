// What a model is made of, from its blueprint alone: every linear map, and the tensors that are never quantised.
//
//   for (const LinearMap& map : linear_maps(blueprint, /*with_mtp=*/false, &targets, parts)) ...
//   count_parameters(blueprint);            // 671,026,419,200 for DeepSeek-V3
//
// The builder in moe/model.cpp makes the maps of this list and the memory plan adds them up.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "lora/adapters/adapter.h"
#include "lora/frozen_weight.h"
#include "moe/stage.h"
#include "moe/trained_parts.h"

namespace moetune {

struct LinearMap;

/// How many ranks share a matrix: of a dense map those of the tensor axis, of an expert's either those too or one; and
/// the format that weights are held in, on whose blocks cuts fall.
struct TensorParts {
  int64_t dense = 1, experts = 1;
  BaseFormat base = BaseFormat::kNf4;
  int64_t of(const TensorSpec& tensor) const { return tensor.stack > 0 ? experts : dense; }
  /// The part of a tensor that the rank at `index` holds. That of the first is as large as any.
  MatrixCut cut_of(const TensorSpec& tensor, int64_t index = 0) const;
  /// The same of what trains on it, or is held as it is: whole where several ranks would hold the same part, so that
  /// what they add to its gradient is summed as that of any other whole tensor.
  MatrixCut cut_without_copies(const TensorSpec& tensor, int64_t index = 0) const;
  /// That of an expert's features.
  MatrixCut expert_features(const Blueprint& blueprint, int64_t index = 0) const;
};

/// A linear map [outputs, inputs], or the stack of a layer's routed experts with one such map an expert.
struct LinearMap : TensorSpec {
  int64_t outputs = 0;  ///< O
  int64_t inputs = 0;   ///< I
  std::optional<AdapterSpec> adapter;
  bool trained = false;  ///< its own weight trains; otherwise it is frozen, with the adapter beside it or without
  StackExperts trained_experts = {};  ///< of a stack that trains: those that do; all are held frozen unless all do
  /// Whether a rank holds it, or all experts of it, as it was read.
  bool is_held_frozen() const { return !trained || !trained_experts.are_all(); }

  /// Matrices that a rank with `local_experts` experts of each layer holds.
  int64_t units(int64_t local_experts) const { return stack > 0 ? local_experts : 1; }
  /// The map with the outputs or inputs that the first of the ranks that share it holds.
  LinearMap part(const TensorParts& parts) const { return part(parts.cut_of(*this)); }
  LinearMap part(const MatrixCut& cut) const;
};

/// The map that a tensor of two dimensions is, as a run holds it: `targets` gives adapters and counts its matches
/// (null: none), `parts` train themselves. InternalError for a map that would be both.
LinearMap linear_map(const TensorSpec& tensor, AdapterTargets* targets = nullptr, const TrainedParts& parts = {});
/// The maps of one block in the order of their use; the MTP module's is one too.
std::vector<LinearMap> block_maps(const Blueprint& blueprint, LayerId layer, AdapterTargets* targets = nullptr,
                                  const TrainedParts& parts = {});
/// What keeps `parts` ranks from sharing the matrices of this model, a line each; none: nothing. Features of MLPs and
/// experts are shared by any number of ranks.
std::vector<std::string> cut_mistakes(const Blueprint& blueprint, int64_t parts);
/// The MTP module's projection, eh_proj.
LinearMap mtp_projection(const Blueprint& blueprint, const TrainedParts& parts = {});
/// The maps of all blocks, and with_mtp those of the MTP module, its projection last.
std::vector<LinearMap> linear_maps(const Blueprint& blueprint, bool with_mtp, AdapterTargets* targets = nullptr,
                                   const TrainedParts& parts = {});
/// How a map is held in a model of format `base`: eh_proj, whose output is the residual stream itself, at least in
/// bf16.
BaseFormat held_format(const LinearMap& map, BaseFormat base);

/// The tensors that are no linear maps of a block and have no copy elsewhere: the MTP module shares embedding and head.
std::vector<TensorSpec> plain_tensors(const Blueprint& blueprint, bool with_mtp);
/// Whether the ranks of the tensor axis hold parts of a plain tensor.
bool is_cut(const TensorSpec& plain, const TensorParts& parts);
/// Numbers of a plain tensor that the first of the ranks that share it holds, of a stack those of `experts`.
int64_t held_numbers(const TensorSpec& plain, const TensorParts& parts, int64_t experts);

/// Parameters of the model, embedding and head included; with_mtp adds what the MTP module does not share.
int64_t count_parameters(const Blueprint& blueprint, bool with_mtp = false);
/// Those that one token meets: the chosen experts instead of all.
int64_t count_active_parameters(const Blueprint& blueprint);

}  // namespace moetune
