#include "moe/families/dots1.h"

#include "moe/families/deepseek_v3.h"
#include "parallel/base/error.h"

namespace moetune {

Blueprint dots1(const ConfigReader& config) {
  config.require({"first_k_dense_replace", "n_shared_experts", "n_group", "topk_group", "norm_topk_prob",
                  "routed_scaling_factor"});
  // The hub's files call the sigmoid by the name of what chooses with it.
  if (config.text_or("scoring_func", "noaux_tc") != "noaux_tc") config.only("scoring_func", "sigmoid");
  Blueprint model;
  config.read_common(model);
  LayerSpec layer;
  layer.attention = config.read_grouped_query(model.rotary, model.max_positions);
  layer.attention.qkv_bias = layer.attention.o_bias = config.flag_or("attention_bias", false);
  layer.attention.head_norm = AttentionSpec::HeadNorm::kPerHead;
  layer.attention.head_norm_eps = model.norm_eps;
  config.add_layers(model, layer, /*dense_otherwise=*/0);
  // Layers from max_window_layers on attend within a window.
  const int64_t first_window = config.integer_or("max_window_layers", 62, 0);
  for (int64_t i = first_window; i < model.num_layers() && config.has("sliding_window"); ++i) {
    model.layers[i].attention.mask = {MaskSpec::Kind::kWindow, config.integer("sliding_window", 1)};
  }
  read_sigmoid_router(config, model);
  config.check_size(model, "n_routed_experts");
  return model;
}

}  // namespace moetune
