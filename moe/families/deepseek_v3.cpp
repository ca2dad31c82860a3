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
  attention.qkv_bias = attention.o_bias = config.flag_or("attention_bias", false);
  rotary.dim = attention.rotary_dim;
  rotary = config.rotary(rotary, max_positions);
  attention.softmax_scale = softmax_scale(attention.key_dim(), rotary);
}

void read_sigmoid_router(const ConfigReader& config, Blueprint& model) {
  if (config.names("norm_topk_prob") && !config.has("norm_topk_prob")) {
    config.fail("norm_topk_prob", "is null, want true or false");
  }
  RouterSpec& router = model.router;
  router.scores = RouterSpec::Scores::kSigmoid;
  config.read_router_sizes(router, "n_routed_experts", "num_local_experts");
  config.read_router_groups(router, RouterSpec::Choice::kGroupsByBestTwo);
  router.correction_bias = true;
  router.normalise = config.flag_or("norm_topk_prob", true);
  router.normalise_eps = 1e-20;
  router.scale = config.number_or("routed_scaling_factor", 1.0);
  read_expert_widths(config, model.experts);
}

void read_expert_widths(const ConfigReader& config, ExpertSpec& experts) {
  experts.width = config.integer("moe_intermediate_size", 1, kMostFeatures);
  experts.shared_width = config.integer_or("n_shared_experts", 0, 0, kMostExperts) * experts.width;
}

Blueprint latent_with_sigmoid_router(const ConfigReader& config) {
  config.only("scoring_func", "sigmoid");
  config.only("topk_method", "noaux_tc");
  config.only("rope_interleave", true, "is false; only interleaved pairs are computed");
  if (config.integer_or("moe_layer_freq", 1, 1) != 1) {
    config.fail("moe_layer_freq", "is not 1; only a router in every layer is computed");
  }
  Blueprint model;
  config.read_common(model);
  LayerSpec layer;
  read_latent_attention(config, layer.attention, model.rotary, model.max_positions);
  config.add_layers(model, layer, /*dense_otherwise=*/1);
  config.read_mtp(model, layer);
  read_sigmoid_router(config, model);
  config.check_size(model, "n_routed_experts");
  return model;
}

Blueprint deepseek_v3(const ConfigReader& config) {
  // DeepSeek's own code and transformers take different values where these are absent (null says "none" to both).
  config.require({"first_k_dense_replace", "n_shared_experts", "n_group", "topk_group", "norm_topk_prob",
                  "routed_scaling_factor", "q_lora_rank"});
  return latent_with_sigmoid_router(config);
}

Blueprint sparse_latent(const ConfigReader& config) {
  config.require({"n_group", "topk_group", "norm_topk_prob", "routed_scaling_factor", "q_lora_rank"});
  config.only("mlp_bias", false, "is true; only MLPs without bias are computed");
  Blueprint model = latent_with_sigmoid_router(config);
  model.longest_document = config.integer("index_topk", 1);
  return model;
}

}  // namespace moetune
