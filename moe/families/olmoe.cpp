#include "moe/families/olmoe.h"

namespace moetune {

Blueprint olmoe(const ConfigReader& config) {
  if (config.has("clip_qkv")) config.fail("clip_qkv", "is set; queries, keys and values are computed without clipping");
  Blueprint model;
  config.read_common(model);
  LayerSpec layer;
  layer.attention = config.read_grouped_query(model.rotary, model.max_positions);
  layer.attention.qkv_bias = layer.attention.o_bias = config.flag_or("attention_bias", false);
  layer.attention.head_norm = AttentionSpec::HeadNorm::kAllHeads;
  layer.attention.head_norm_eps = model.norm_eps;
  model.layers.assign(config.num_layers(), layer);
  config.read_router_sizes(model.router, "num_experts", "num_local_experts");
  model.router.scores = RouterSpec::Scores::kSoftmax;
  model.router.normalise = config.flag_or("norm_topk_prob", false);
  model.experts.width = config.integer("intermediate_size", 1, kMostFeatures);
  config.check_size(model, "num_experts");
  return model;
}

}  // namespace moetune
