// DeepSeek-V3 and R1 (report arXiv:2412.19437), Kimi-K2 and Moonlight, which compute the same, and the families that
// share its latent attention and sigmoid router: V3.2, GLM-4.7-Flash, GLM-5.
#pragma once

#include "moe/families/config_reader.h"

namespace moetune {

/// deepseek_v3, kimi_k2.
Blueprint deepseek_v3(const ConfigReader& config);
/// glm4_moe_lite, and what the others have in common.
Blueprint latent_with_sigmoid_router(const ConfigReader& config);
/// deepseek_v32, glm_moe_dsa: sparse attention, whose indexer keeps the index_topk best tokens for each. Documents that
/// are no longer attend to all of theirs, as V3 does, exactly; others are refused.
Blueprint sparse_latent(const ConfigReader& config);

/// Latent attention of the DeepSeek families: heads, latents and widths of a head; `rotary` gets its dim and scaling,
/// which scales the softmax too.
void read_latent_attention(const ConfigReader& config, AttentionSpec& attention, RotarySpec& rotary,
                           int64_t max_positions);

/// Its router and experts: sigmoid scores with a correction bias, groups by their best two.
void read_sigmoid_router(const ConfigReader& config, Blueprint& model);
/// Experts of moe_intermediate_size, and n_shared_experts of them as one MLP.
void read_expert_widths(const ConfigReader& config, ExpertSpec& experts);

}  // namespace moetune
