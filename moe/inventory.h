// What a model is made of, from its config alone: every linear map, and the tensors that are never quantised.
//
//   for (const LinearMap& map : linear_maps(config, /*with_mtp=*/false, &targets)) ...
//   count_parameters(config);            // 671,026,419,200 for DeepSeek-V3
//
// The builder in moe/model.cpp makes the maps of this list and the memory plan adds them up: shapes, names and groups
// stand once.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "lora/adapters/adapter.h"
#include "lora/frozen_weight.h"
#include "moe/config.h"

namespace moetune {

struct LinearMap;

/// How many ranks share a matrix: of a dense map those of the tensor axis, of an expert's either those too or one.
struct TensorParts {
  int64_t dense = 1, experts = 1;
  int64_t of(const LinearMap& map) const;
};

/// A linear map [outputs, inputs], or the stack of a layer's routed experts with one such map an expert.
struct LinearMap {
  LayerId layer;  ///< the block, or MTP for all of the module's
  /// below the layer, '*' for the expert of a stack: "self_attn.q_a_proj", "mlp.experts.*.up_proj"
  std::string path;
  /// attention, dense_mlp, shared_expert, experts; mtp: eh_proj, which is neither quantised nor adapted
  std::string group;
  int64_t outputs = 0;  ///< O
  int64_t inputs = 0;   ///< I
  int64_t stack = 0;    ///< E of a stack, all ranks together; 0: a plain map
  std::optional<AdapterSpec> adapter;
  /// how ranks that share it cut it, each map of a stack; kNone: each holds it whole
  MatrixCut::Dim cut = MatrixCut::Dim::kNone;

  std::string name() const;  ///< "model.layers.3.self_attn.q_a_proj"
  std::string leaf() const;  ///< as adapter.targets says it: "q_a_proj", "experts.up_proj"
  /// Matrices that a rank with `local_experts` experts of each layer holds.
  int64_t units(int64_t local_experts) const { return stack > 0 ? local_experts : 1; }
  /// The map with the outputs or inputs that each of the ranks that share it holds.
  LinearMap part(const TensorParts& parts) const;
};

/// The maps of one block in the order of their use; the MTP module's is one too. `targets` gives
/// adapters and counts its matches; null: none.
std::vector<LinearMap> block_maps(const ModelConfig& config, LayerId layer, AdapterTargets* targets = nullptr);
/// What keeps `parts` ranks from sharing the matrices of this model but for its experts in format `base`, a line each;
/// none: nothing.
std::vector<std::string> cut_mistakes(const ModelConfig& config, BaseFormat base, int64_t parts);
/// The same of sharing each expert.
std::vector<std::string> expert_cut_mistakes(const ModelConfig& config, BaseFormat base, int64_t parts);
/// The MTP module's projection, eh_proj.
LinearMap mtp_projection(const ModelConfig& config);
/// The maps of all blocks, and with_mtp those of the MTP module, its projection last.
std::vector<LinearMap> linear_maps(const ModelConfig& config, bool with_mtp, AdapterTargets* targets = nullptr);
/// How a map is held in a model of format `base`: eh_proj, whose output is the residual stream itself, at least in
/// bf16.
BaseFormat held_format(const LinearMap& map, BaseFormat base);

/// Numbers in the tensors that are no linear maps of a block. The MTP module shares embedding and head.
struct PlainNumbers {
  int64_t embedding = 0, head = 0, norms = 0, router = 0, router_bias = 0;
  int64_t total() const { return embedding + head + norms + router + router_bias; }
};
/// `parts`: ranks that share embedding and head; the numbers are those of the first.
PlainNumbers plain_numbers(const ModelConfig& config, bool with_mtp, int64_t parts = 1);

/// Parameters of the model, embedding and head included; with_mtp adds what the MTP module does not share.
int64_t count_parameters(const ModelConfig& config, bool with_mtp = false);
/// Those that one token meets: the chosen experts instead of all.
int64_t count_active_parameters(const ModelConfig& config);

}  // namespace moetune
