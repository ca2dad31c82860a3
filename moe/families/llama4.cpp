#include "moe/families/llama4.h"

#include <algorithm>

#include "parallel/base/error.h"

#include <nlohmann/json.hpp>

namespace moetune {
namespace {

/// Whether layer i has rotary features: 1 means that it has. An empty list stands for the schedule, as in transformers.
std::vector<int64_t> rotary_layers(const ConfigReader& config, int64_t num_layers) {
  std::vector<int64_t> rotary;
  if (config.has("no_rope_layers")) rotary = config.integers("no_rope_layers", 0, 1);
  if (rotary.empty()) {
    const int64_t every = config.integer_or("no_rope_layer_interval", 4, 1);
    for (int64_t i = 0; i < num_layers; ++i) rotary.push_back((i + 1) % every != 0 ? 1 : 0);
  }
  if (static_cast<int64_t>(rotary.size()) < num_layers) {
    config.fail("no_rope_layers", str("names ", rotary.size(), " of ", num_layers, " layers"));
  }
  return rotary;
}

std::vector<bool> sparse_layers(const ConfigReader& config, int64_t num_layers) {
  std::vector<bool> sparse(num_layers, false);
  if (config.has("moe_layers")) {
    for (const int64_t layer : config.integers("moe_layers", 0, num_layers - 1)) sparse[layer] = true;
    return sparse;
  }
  const int64_t step = config.integer_or("interleave_moe_layer_step", 1, 1);
  for (int64_t i = step - 1; i < num_layers; i += step) sparse[i] = true;
  return sparse;
}

/// The first releases wrote 4 for true.
bool tunes_temperature(const ConfigReader& config) {
  const char* key = "attn_temperature_tuning";
  if (config.has(key) && config.at(key).is_number_integer()) return config.integer(key, 0) != 0;
  return config.flag_or(key, true);
}

}  // namespace

Blueprint llama4_text(const ConfigReader& config) {
  config.require({"num_key_value_heads", "head_dim", "intermediate_size_mlp"});
  Blueprint model;
  config.read_common(model);
  model.rotary.theta = 500000;
  LayerSpec layer;
  AttentionSpec& attention = layer.attention;
  attention = config.read_grouped_query(model.rotary, model.max_positions);
  model.rotary.layout = RotarySpec::Layout::kPairs;
  attention.qkv_bias = attention.o_bias = config.flag_or("attention_bias", false);
  attention.head_norm_eps = model.norm_eps;
  const int64_t num_layers = config.num_layers();
  const std::vector<int64_t> rotary = rotary_layers(config, num_layers);
  const std::vector<bool> sparse = sparse_layers(config, num_layers);
  const int64_t dense_width = config.integer("intermediate_size_mlp", 1, kMostFeatures);
  for (int64_t i = 0; i < num_layers; ++i) {
    LayerSpec& one = model.layers.emplace_back(layer);
    if (!sparse[i]) one.dense_width = dense_width;
    if (rotary[i] == 1) {
      if (config.flag_or("use_qk_norm", true)) {
        one.attention.head_norm = AttentionSpec::HeadNorm::kWeightlessAfterwards;
      }
      if (config.has("attention_chunk_size")) {
        one.attention.mask = {MaskSpec::Kind::kChunk, config.integer("attention_chunk_size", 1)};
      }
      continue;
    }
    one.attention.nope_dim = attention.key_dim();
    one.attention.rotary_dim = 0;
    if (tunes_temperature(config)) {
      one.attention.temperature_scale = config.number_or("attn_scale", 0.1);
      one.attention.temperature_floor = config.number_or("floor_scale", 8192);
    }
  }
  config.read_router_sizes(model.router, "num_local_experts", "num_experts");
  model.router.normalise = false;
  model.experts.width = model.experts.shared_width = config.integer("intermediate_size", 1, kMostFeatures);
  model.experts.weight_acts = ExpertSpec::WeightActs::kInput;
  model.experts.layout = ExpertSpec::Layout::kFused;
  model.naming.dense = model.naming.sparse = "feed_forward";
  model.naming.router = "router";
  model.naming.shared = "shared_expert";
  config.check_size(model, "num_local_experts");
  return model;
}

Blueprint llama4(const ConfigReader& config) {
  if (!config.has("text_config")) config.fail("text_config", "is missing");
  const bool fp8_blocks = config.fp8_blocks();
  Blueprint model = llama4_text(config.object("text_config"));
  model.fp8_blocks |= fp8_blocks;
  if (config.has("tie_word_embeddings")) model.tied_embeddings = config.flag_or("tie_word_embeddings", false);
  model.naming.prefix = "language_model.";
  return model;
}

}  // namespace moetune
