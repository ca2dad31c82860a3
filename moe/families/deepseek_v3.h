// DeepSeek-V3 and R1 (report arXiv:2412.19437), and Kimi-K2 and Moonlight, which compute the same.
#pragma once

#include "moe/families/config_reader.h"

namespace moetune {

Blueprint deepseek_v3(const ConfigReader& config);

/// Latent attention of the DeepSeek families: q_lora_rank, kv_lora_rank and the widths of a head; `rotary` scales the
/// softmax. Sets heads and widths in `attention` and rotary.dim.
void read_latent_attention(const ConfigReader& config, AttentionSpec& attention, RotarySpec& rotary,
                           int64_t max_positions);

}  // namespace moetune
