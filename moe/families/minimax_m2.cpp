#include "moe/families/minimax_m2.h"

#include "moe/families/mixtral.h"
#include "parallel/base/error.h"

namespace moetune {

Blueprint minimax_m2(const ConfigReader& config) {
  config.only("scoring_func", "sigmoid");
  config.only("use_routing_bias", true, "is false; only routing with a correction bias is computed");
  config.only("use_qk_norm", true, "is false; only normed queries and keys are computed");
  config.only("qk_norm_type", "per_layer");
  if (config.integer_or("shared_intermediate_size", 0, 0) != 0) {
    config.fail("shared_intermediate_size", "is not 0; MiniMax-M2 has no shared expert");
  }
  if (config.has("attn_type_list")) {
    for (const int64_t type : config.integers("attn_type_list", 0, 1)) {
      if (type != 1) config.fail("attn_type_list", "names a layer of linear attention; only softmax is computed");
    }
  }
  config.require({"num_key_value_heads", "head_dim"});
  Blueprint model;
  config.read_common(model);
  model.rotary.theta = 5e6;
  LayerSpec layer;
  const auto head_dim = static_cast<double>(config.integer("head_dim", 1, kMostHeads));
  const double rotated =
      static_cast<double>(config.integer_or("rotary_dim", config.integer("head_dim", 1), 1)) / head_dim;
  layer.attention = config.read_grouped_query(model.rotary, model.max_positions, rotated);
  if (config.integer_or("rotary_dim", layer.attention.rotary_dim, 1) != layer.attention.rotary_dim) {
    config.fail("rotary_dim", str("is not the part of head_dim that partial_rotary_factor says, which is ",
                                  layer.attention.rotary_dim));
  }
  layer.attention.head_norm = AttentionSpec::HeadNorm::kAllHeads;
  layer.attention.head_norm_eps = model.norm_eps;
  model.layers.assign(config.num_layers(), layer);
  config.read_router_sizes(model.router, "num_local_experts", "num_experts");
  model.router.correction_bias = true;
  model.experts.width = config.integer("intermediate_size", 1, kMostFeatures);
  model.naming = mixtral_names();
  model.naming.correction_bias = "e_score_correction_bias";
  config.check_size(model, "num_local_experts");
  return model;
}

}  // namespace moetune
