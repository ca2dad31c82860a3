#include "moe/families/deepseek_v3.h"

#include <algorithm>
#include <cmath>

#include "parallel/base/error.h"

namespace moetune {
namespace {

/// 1 / sqrt(key_dim), times YaRN's mscale^2 (DeepSeek-V2 report, section 2.1; transformers' yarn_apply_mscale).
double softmax_scale(int64_t key_dim, const RotarySpec& rotary) {
  double scale = 1.0 / std::sqrt(static_cast<double>(key_dim));
  if (rotary.scaling == RotarySpec::Scaling::kYarn && rotary.mscale_all_dim && rotary.factor > 1.0) {
    const double mscale = 0.1 * *rotary.mscale_all_dim * std::log(rotary.factor) + 1.0;
    scale *= mscale * mscale;
  }
  return scale;
}

RouterSpec read_router(const ConfigReader& config) {
  RouterSpec router;
  router.scores = RouterSpec::Scores::kSigmoid;
  router.experts = config.integer_of_either("n_routed_experts", "num_local_experts", 1, kMostExperts);
  router.top_k = config.integer("num_experts_per_tok", 1, kMostExperts);
  router.num_groups = config.integer_or("n_group", 1, 1);
  router.top_groups = config.integer_or("topk_group", router.num_groups, 1);
  router.choice = router.num_groups > 1 ? RouterSpec::Choice::kGroupsByBestTwo : RouterSpec::Choice::kGreedy;
  if (router.experts % router.num_groups != 0) {
    config.fail("n_group", str("does not divide ", router.experts, " experts"));
  }
  const int64_t group_size = router.experts / router.num_groups;
  if (router.top_groups > router.num_groups) config.fail("topk_group", str("exceeds n_group ", router.num_groups));
  if (router.num_groups > 1 && group_size < 2) {
    config.fail("n_group", "leaves groups of one expert; a group's score is the sum of its two best");
  }
  if (router.top_k > router.top_groups * group_size) {
    config.fail("num_experts_per_tok", "exceeds the experts of the chosen groups");
  }
  router.correction_bias = true;
  router.normalise = config.flag_or("norm_topk_prob", true);
  router.normalise_eps = 1e-20;
  router.scale = config.number_or("routed_scaling_factor", 1.0);
  return router;
}

}  // namespace

void read_latent_attention(const ConfigReader& config, AttentionSpec& attention, RotarySpec& rotary,
                           int64_t max_positions) {
  attention.kind = AttentionSpec::Kind::kLatent;
  attention.heads = config.integer("num_attention_heads", 1, kMostHeads);
  attention.kv_heads = attention.heads;
  if (config.integer_or("num_key_value_heads", attention.heads, 1) != attention.heads) {
    config.fail("num_key_value_heads",
                "differs from num_attention_heads; latent attention has one key and value a head");
  }
  if (config.has("q_lora_rank")) attention.q_lora = config.integer("q_lora_rank", 1, kMostWidth);
  attention.kv_lora = config.integer("kv_lora_rank", 1, kMostWidth);
  attention.nope_dim = config.integer("qk_nope_head_dim", 1, kMostHeads);
  attention.rotary_dim = config.integer("qk_rope_head_dim", 2, kMostHeads);
  if (attention.rotary_dim % 2 != 0) config.fail("qk_rope_head_dim", "is odd; rotary features come in pairs");
  if (config.integer_or("qk_head_dim", attention.key_dim(), 1) != attention.key_dim()) {
    config.fail("qk_head_dim", str("is not qk_nope_head_dim + qk_rope_head_dim, which is ", attention.key_dim()));
  }
  attention.value_dim = config.integer("v_head_dim", 1, kMostHeads);
  rotary.dim = attention.rotary_dim;
  rotary = config.rotary(rotary, max_positions);
  attention.softmax_scale = softmax_scale(attention.key_dim(), rotary);
}

Blueprint deepseek_v3(const ConfigReader& config) {
  config.only("hidden_act", "silu");
  config.only("scoring_func", "sigmoid");
  config.only("topk_method", "noaux_tc");
  config.only("attention_bias", false, "is true; only projections without bias are computed");
  config.only("rope_interleave", true, "is false; only interleaved pairs are computed");
  if (config.integer_or("moe_layer_freq", 1, 1) != 1) {
    config.fail("moe_layer_freq", "is not 1; only a router in every layer is computed");
  }
  if (config.names("norm_topk_prob") && !config.has("norm_topk_prob")) {
    config.fail("norm_topk_prob", "is null, want true or false");
  }
  // DeepSeek's own code and transformers take different values where these are absent (null says "none" to both).
  config.require({"first_k_dense_replace", "n_shared_experts", "n_group", "topk_group", "norm_topk_prob",
                  "routed_scaling_factor", "q_lora_rank"});

  Blueprint model;
  config.read_common(model);
  LayerSpec layer;
  read_latent_attention(config, layer.attention, model.rotary, model.max_positions);
  const int64_t dense_width = config.integer("intermediate_size", 1, kMostFeatures);
  const int64_t num_layers = config.num_layers();
  const int64_t num_dense = std::min(config.integer_or("first_k_dense_replace", 0, 0), num_layers);
  for (int64_t i = 0; i < num_layers; ++i) {
    model.layers.push_back(layer);
    if (i < num_dense) model.layers.back().dense_width = dense_width;
  }
  model.mtp_layer = layer;
  model.router = read_router(config);
  model.experts.width = config.integer("moe_intermediate_size", 1, kMostFeatures);
  model.experts.shared_width = config.integer_or("n_shared_experts", 0, 0, kMostExperts) * model.experts.width;
  if (config.has("num_nextn_predict_layers") || config.has("num_mtp_layers")) {
    model.num_mtp_layers = config.integer_of_either("num_nextn_predict_layers", "num_mtp_layers", 0, kMostLayers);
  }
  model.fp8_blocks = config.fp8_blocks();
  config.check_size(model, "n_routed_experts");
  return model;
}

}  // namespace moetune
