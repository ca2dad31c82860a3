#include "moe/families/deepseek_v2.h"

#include <cmath>

#include "moe/families/deepseek_v3.h"
#include "parallel/base/error.h"

namespace moetune {
namespace {

RouterSpec read_router(const ConfigReader& config) {
  config.only("scoring_func", "softmax");
  RouterSpec router;
  router.scores = RouterSpec::Scores::kSoftmax;
  config.read_router_sizes(router, "n_routed_experts", "num_experts");
  router.balance = BalanceKind::kDeepseekV2;
  const std::string method = config.text_or("topk_method", "greedy");
  if (method == "group_limited_greedy") {
    config.read_router_groups(router, RouterSpec::Choice::kGroupsByMax);
  } else if (method != "greedy") {
    config.fail("topk_method", str("is ", single_quoted(method), "; 'greedy' and 'group_limited_greedy' are computed"));
  }
  router.normalise = config.flag_or("norm_topk_prob", false) && router.top_k > 1;
  router.normalise_eps = 1e-20;
  router.scale = router.normalise ? 1.0 : config.number_or("routed_scaling_factor", 1.0);
  return router;
}

}  // namespace

Blueprint deepseek_v2(const ConfigReader& config) {
  config.only("mlp_bias", false, "is true; only MLPs without bias are computed");
  config.require({"q_lora_rank", "first_k_dense_replace", "n_shared_experts"});
  Blueprint model;
  config.read_common(model);
  LayerSpec layer;
  read_latent_attention(config, layer.attention, model.rotary, model.max_positions);
  // m(mscale) / m(mscale_all_dim) with m(a) = 0.1 a ln(factor) + 1, where a missing mscale is 1 and the other 0.
  if (model.rotary.scaling == RotarySpec::Scaling::kYarn && model.rotary.factor > 1.0) {
    const auto m = [&](double a) { return 0.1 * a * std::log(model.rotary.factor) + 1.0; };
    model.rotary.attention_factor = m(model.rotary.mscale.value_or(1.0)) / m(model.rotary.mscale_all_dim.value_or(0.0));
  }
  config.add_layers(model, layer, /*dense_otherwise=*/0);
  const int64_t every = config.integer_or("moe_layer_freq", 1, 1, kMostLayers);
  const int64_t dense_width = config.integer("intermediate_size", 1, kMostFeatures);
  for (int64_t i = 0; i < model.num_layers(); ++i) {
    if (i % every != 0) model.layers[i].dense_width = dense_width;
  }
  model.router = read_router(config);
  read_expert_widths(config, model.experts);
  config.check_size(model, "n_routed_experts");
  return model;
}

}  // namespace moetune
