#include "moe/families/glm4_moe.h"

#include "moe/families/deepseek_v3.h"

namespace moetune {

Blueprint glm4_moe(const ConfigReader& config) {
  config.require(
      {"num_key_value_heads", "first_k_dense_replace", "n_shared_experts", "norm_topk_prob", "routed_scaling_factor"});
  Blueprint model;
  config.read_common(model);
  LayerSpec layer;
  layer.attention = config.read_grouped_query(model.rotary, model.max_positions, /*rotated=*/0.5);
  layer.attention.qkv_bias = config.flag_or("attention_bias", false);
  if (config.flag_or("use_qk_norm", false)) {
    layer.attention.head_norm = AttentionSpec::HeadNorm::kPerHead;
    layer.attention.head_norm_eps = model.norm_eps;
  }
  config.add_layers(model, layer, /*dense_otherwise=*/1);
  config.read_mtp(model, layer);
  read_sigmoid_router(config, model);
  config.check_size(model, "n_routed_experts");
  return model;
}

}  // namespace moetune
