#include "moe/families/mixtral.h"

namespace moetune {

Naming mixtral_names() {
  Naming names;
  names.sparse = "block_sparse_moe";
  names.gate = "w1";
  names.up = "w3";
  names.down = "w2";
  return names;
}

Blueprint mixtral(const ConfigReader& config) {
  config.require({"num_key_value_heads"});
  Blueprint model;
  config.read_common(model);
  model.rotary.theta = 1e6;
  LayerSpec layer;
  layer.attention = config.read_grouped_query(model.rotary, model.max_positions);
  if (config.has("sliding_window")) {
    layer.attention.mask = {MaskSpec::Kind::kWindow, config.integer("sliding_window", 1)};
  }
  model.layers.assign(config.num_layers(), layer);
  config.read_router_sizes(model.router, "num_local_experts", "num_experts");
  model.router.scores = RouterSpec::Scores::kSoftmax;
  model.experts.width = config.integer("intermediate_size", 1, kMostFeatures);
  model.naming = mixtral_names();
  config.check_size(model, "num_local_experts");
  return model;
}

}  // namespace moetune
