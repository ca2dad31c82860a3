// The sizes and constants of a model, from its Hugging Face config.json.
//
//   ModelConfig config = load_model_config("/models/DeepSeek-V3");
//   config.is_moe(LayerId::block(3));          // true
//
// Reads DeepSeek-V3/R1 (model_type deepseek_v3; kimi_k2 is the same mathematics) in the old spelling (rope_theta,
// rope_scaling) and in that of transformers 5 (rope_parameters). What the program does not compute exactly as the model
// says is refused by name, and so are two keys that say different things of one number. Sizes are bounded, so that no
// product of them overflows.
#pragma once

#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <vector>

#include <nlohmann/json_fwd.hpp>

#include "lora/layer_id.h"

namespace moetune {

struct RopeConfig {
  enum class Kind { kDefault, kYarn };
  Kind kind = Kind::kDefault;
  int64_t dim = 0;  ///< rotary features of a head
  double theta = 10000.0;
  double factor = 1.0;
  double original_max_positions = 0;
  double beta_fast = 32, beta_slow = 1;
  bool truncate = true;
  std::optional<double> mscale, mscale_all_dim, attention_factor;
  bool operator==(const RopeConfig&) const = default;
};
/// The rotary scaling in force, for people: "default, theta 10000", "yarn 40 x 4096 positions, theta 10000, ...".
std::string rope_text(const RopeConfig& rope);

struct ModelConfig {
  std::string model_type;
  int64_t vocab = 0;              ///< V
  int64_t width = 0;              ///< D
  int64_t num_layers = 0;         ///< L, without the MTP module
  int64_t dense_width = 0;        ///< F of the dense layers' MLP
  int64_t expert_width = 0;       ///< F of one expert
  int64_t num_dense_layers = 0;   ///< the first ones
  int64_t heads = 0;              ///< H
  std::optional<int64_t> q_lora;  ///< width of the query latent; none: one plain q_proj
  int64_t kv_lora = 0;
  int64_t nope_dim = 0, rope_dim = 0, value_dim = 0;
  int64_t experts = 0;         ///< E, routed
  int64_t shared_experts = 0;  ///< one MLP of shared_experts * expert_width; 0: none
  int64_t top_k = 0;           ///< K
  int64_t num_groups = 1, top_groups = 1;
  bool normalise_top_k = true;
  double routed_scale = 1.0;
  double norm_eps = 1e-6;  ///< of the norms on D; those inside MLA use 1e-6 whatever the config says
  double initializer_range = 0.02;
  bool tied_embeddings = false;
  int64_t num_mtp_layers = 0;
  int64_t max_positions = 0;
  RopeConfig rope;
  bool fp8_blocks = false;  ///< weights are FP8 e4m3 with 128 x 128 scales

  int64_t qk_dim() const { return nope_dim + rope_dim; }
  /// The trunk's blocks from the first to the last; `with_mtp`: the MTP module's behind them.
  std::vector<LayerId> blocks(bool with_mtp) const;
  LayerId mtp() const { return LayerId::mtp(num_layers); }
  LayerId turn() const { return LayerId::turn(num_layers); }
  bool is_moe(LayerId block) const { return block.number() >= num_dense_layers; }
  /// 1 / sqrt(qk_dim), times YaRN's mscale^2 (DeepSeek-V2 report, section 2.1; transformers' yarn_apply_mscale).
  double softmax_scale() const;
  bool operator==(const ModelConfig&) const = default;
};

/// Reads `folder`/config.json. Throws UserError naming file, key, value and what is allowed.
ModelConfig load_model_config(const std::filesystem::path& folder);
/// `place` stands for the file in messages.
ModelConfig parse_model_config(const nlohmann::json& config, const std::string& place);

}  // namespace moetune
