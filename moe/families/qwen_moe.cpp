#include "moe/families/qwen_moe.h"

#include <algorithm>

namespace moetune {
namespace {

/// What both have: softmax over all experts, normalised where the config says so; experts in every
/// decoder_sparse_step-th layer but for mlp_only_layers.
Blueprint qwen(const ConfigReader& config, const LayerSpec& layer, Blueprint model) {
  config.only("use_sliding_window", false, "is true; its meaning differs between versions of transformers");
  const int64_t step = config.integer_or("decoder_sparse_step", 1, 1, kMostLayers);
  const int64_t dense_width = config.integer("intermediate_size", 1, kMostFeatures);
  std::vector<int64_t> dense;
  if (config.has("mlp_only_layers")) dense = config.integers("mlp_only_layers", 0, kMostLayers);
  model.layers.assign(config.num_layers(), layer);
  for (int64_t i = 0; i < model.num_layers(); ++i) {
    const bool named = std::find(dense.begin(), dense.end(), i) != dense.end();
    if (named || (i + 1) % step != 0) model.layers[i].dense_width = dense_width;
  }
  config.read_router_sizes(model.router, "num_experts", "num_local_experts");
  model.router.scores = RouterSpec::Scores::kSoftmax;
  model.router.normalise = config.flag_or("norm_topk_prob", false);
  model.experts.width = config.integer("moe_intermediate_size", 1, kMostFeatures);
  config.check_size(model, "num_experts");
  return model;
}

}  // namespace

Blueprint qwen2_moe(const ConfigReader& config) {
  Blueprint model;
  config.read_common(model);
  LayerSpec layer;
  layer.attention = config.read_grouped_query(model.rotary, model.max_positions);
  layer.attention.qkv_bias = config.flag_or("qkv_bias", true);  // the hub's files leave it out
  model.experts.shared_width = config.integer("shared_expert_intermediate_size", 1, kMostFeatures);
  model.experts.shared_gate = true;
  model.naming.shared = "shared_expert";
  return qwen(config, layer, model);
}

Blueprint qwen3_moe(const ConfigReader& config) {
  config.require({"num_key_value_heads", "norm_topk_prob"});
  Blueprint model;
  config.read_common(model);
  LayerSpec layer;
  layer.attention = config.read_grouped_query(model.rotary, model.max_positions);
  layer.attention.qkv_bias = layer.attention.o_bias = config.flag_or("attention_bias", false);
  layer.attention.head_norm = AttentionSpec::HeadNorm::kPerHead;
  layer.attention.head_norm_eps = model.norm_eps;
  return qwen(config, layer, model);
}

}  // namespace moetune
