// The config.json of DeepSeek-V3: the values that deepseek-ai/DeepSeek-V3 publishes for those keys that shape the
// model.
#pragma once

namespace moetune {

inline constexpr const char* kDeepseekV3Config = R"({
  "model_type": "deepseek_v3", "vocab_size": 129280, "hidden_size": 7168, "intermediate_size": 18432,
  "moe_intermediate_size": 2048, "num_hidden_layers": 61, "first_k_dense_replace": 3, "moe_layer_freq": 1,
  "num_attention_heads": 128, "num_key_value_heads": 128, "q_lora_rank": 1536, "kv_lora_rank": 512,
  "qk_nope_head_dim": 128, "qk_rope_head_dim": 64, "v_head_dim": 128, "attention_bias": false, "n_routed_experts":
  256, "n_shared_experts": 1, "num_experts_per_tok": 8, "n_group": 8, "topk_group": 4, "norm_topk_prob": true,
  "routed_scaling_factor": 2.5, "scoring_func": "sigmoid", "topk_method": "noaux_tc", "num_nextn_predict_layers": 1,
  "hidden_act": "silu", "rope_theta": 10000, "max_position_embeddings": 163840, "rms_norm_eps": 1e-06,
  "tie_word_embeddings": false, "rope_scaling": {"type": "yarn", "factor": 40, "original_max_position_embeddings":
  4096, "beta_fast": 32, "beta_slow": 1, "mscale": 1.0, "mscale_all_dim": 1.0}, "quantization_config":
  {"quant_method": "fp8", "fmt": "e4m3", "activation_scheme": "dynamic", "weight_block_size": [128, 128]}
})";

}  // namespace moetune
