#include "moe/config.h"

#include <cmath>
#include <fstream>

#include <nlohmann/json.hpp>

#include "parallel/base/error.h"

namespace moetune {
namespace {

using nlohmann::json;

/// Typed access to config.json whose errors name file and key.
class Reader {
 public:
  Reader(const json& object, std::string place) : object_(object), place_(std::move(place)) {}

  bool has(const char* key) const { return object_.contains(key) && !object_.at(key).is_null(); }
  int64_t integer(const char* key, int64_t low, int64_t high = int64_t{1} << 40) const {
    const json& value = at(key);
    if (!value.is_number_integer() || value.get<int64_t>() < low || value.get<int64_t>() > high) {
      fail(key, str("is ", value.dump(), ", want a whole number of at least ", low));
    }
    return value.get<int64_t>();
  }
  int64_t integer_or(const char* key, int64_t otherwise, int64_t low) const {
    return has(key) ? integer(key, low) : otherwise;
  }
  double number(const char* key) const {
    const json& value = at(key);
    if (!value.is_number() || !std::isfinite(value.get<double>())) {
      fail(key, str("is ", value.dump(), ", want a number"));
    }
    return value.get<double>();
  }
  double number_or(const char* key, double otherwise) const { return has(key) ? number(key) : otherwise; }
  std::optional<double> optional_number(const char* key) const {
    return has(key) ? std::optional<double>(number(key)) : std::nullopt;
  }
  bool flag_or(const char* key, bool otherwise) const {
    if (!has(key)) return otherwise;
    if (!at(key).is_boolean()) fail(key, str("is ", at(key).dump(), ", want true or false"));
    return at(key).get<bool>();
  }
  std::string text_or(const char* key, const std::string& otherwise) const {
    if (!has(key)) return otherwise;
    if (!at(key).is_string()) fail(key, str("is ", at(key).dump(), ", want text"));
    return at(key).get<std::string>();
  }
  const json& at(const char* key) const {
    if (!has(key)) fail(key, "is missing");
    return object_.at(key);
  }
  [[noreturn]] void fail(const std::string& key, const std::string& problem) const {
    throw UserError(str(place_, ": ", key, " ", problem));
  }
  const std::string& place() const { return place_; }

 private:
  const json& object_;
  std::string place_;
};

RopeConfig parse_rope(const Reader& top, int64_t rope_dim, int64_t max_positions) {
  RopeConfig rope;
  rope.dim = rope_dim;
  rope.theta = top.number_or("rope_theta", 10000.0);
  const char* key = top.has("rope_parameters") ? "rope_parameters" : "rope_scaling";
  if (!top.has(key)) return rope;
  const Reader scaling(top.at(key), str(top.place(), ": ", key));
  rope.theta = scaling.number_or("rope_theta", rope.theta);
  const std::string kind = scaling.text_or("rope_type", scaling.text_or("type", "default"));
  if (kind == "default") return rope;
  if (kind != "yarn") scaling.fail("type", str("is '", kind, "'; this program computes default and yarn"));
  rope.kind = RopeConfig::Kind::kYarn;
  rope.original_max_positions = scaling.number("original_max_position_embeddings");
  rope.factor = scaling.has("factor") ? scaling.number("factor")
                                      : static_cast<double>(max_positions) / rope.original_max_positions;
  if (rope.original_max_positions <= 0.0) scaling.fail("original_max_position_embeddings", "is not above 0");
  if (rope.factor < 1.0) scaling.fail("factor", str("is ", rope.factor, ", want at least 1"));
  if (rope.theta <= 1.0) scaling.fail("rope_theta", str("is ", rope.theta, ", want above 1"));
  rope.beta_fast = scaling.number_or("beta_fast", 32);
  rope.beta_slow = scaling.number_or("beta_slow", 1);
  rope.truncate = scaling.flag_or("truncate", true);
  rope.mscale = scaling.optional_number("mscale");
  rope.mscale_all_dim = scaling.optional_number("mscale_all_dim");
  rope.attention_factor = scaling.optional_number("attention_factor");
  // 0 stands for "not given", as in the reference.
  if (rope.mscale == 0.0) rope.mscale.reset();
  if (rope.mscale_all_dim == 0.0) rope.mscale_all_dim.reset();
  return rope;
}

bool parse_fp8(const Reader& top) {
  if (!top.has("quantization_config")) return false;
  const Reader quantised(top.at("quantization_config"), str(top.place(), ": quantization_config"));
  const std::string method = quantised.text_or("quant_method", "");
  if (method != "fp8") {
    quantised.fail("quant_method", str("is '", method, "'; weights may be bf16, fp16, fp32, or fp8 in blocks"));
  }
  const json& block = quantised.at("weight_block_size");
  if (block != json::array({128, 128})) {
    quantised.fail("weight_block_size", str("is ", block.dump(), ", want [128, 128]"));
  }
  return true;
}

}  // namespace

std::vector<LayerId> ModelConfig::blocks(bool with_mtp) const {
  std::vector<LayerId> blocks;
  for (int64_t index = 0; index < num_layers; ++index) blocks.push_back(LayerId::block(index));
  if (with_mtp) blocks.push_back(mtp());
  return blocks;
}

double ModelConfig::softmax_scale() const {
  double scale = 1.0 / std::sqrt(static_cast<double>(qk_dim()));
  if (rope.kind == RopeConfig::Kind::kYarn && rope.mscale_all_dim && rope.factor > 1.0) {
    const double mscale = 0.1 * *rope.mscale_all_dim * std::log(rope.factor) + 1.0;
    scale *= mscale * mscale;
  }
  return scale;
}

ModelConfig parse_model_config(const json& object, const std::string& place) {
  if (!object.is_object()) throw UserError(str(place, ": want a JSON object"));
  const Reader top(object, place);
  ModelConfig config;
  config.model_type = top.text_or("model_type", "");
  if (config.model_type != "deepseek_v3" && config.model_type != "kimi_k2") {
    top.fail("model_type", str("is '", config.model_type,
                               "'; this program trains deepseek_v3 (and kimi_k2, which computes the same)"));
  }
  auto only = [&](const char* key, const std::string& allowed) {
    const std::string value = top.text_or(key, allowed);
    if (value != allowed) top.fail(key, str("is '", value, "'; only '", allowed, "' is computed"));
  };
  only("hidden_act", "silu");
  only("scoring_func", "sigmoid");
  only("topk_method", "noaux_tc");
  if (top.flag_or("attention_bias", false)) {
    top.fail("attention_bias", "is true; only projections without bias are computed");
  }
  if (!top.flag_or("rope_interleave", true)) {
    top.fail("rope_interleave", "is false; only interleaved pairs are computed");
  }
  if (top.integer_or("moe_layer_freq", 1, 1) != 1) {
    top.fail("moe_layer_freq", "is not 1; only a router in every layer is computed");
  }

  // DeepSeek's own code and transformers take different values where these are absent (null says "none" to both).
  for (const char* key : {"first_k_dense_replace", "n_shared_experts", "n_group", "topk_group", "norm_topk_prob",
                          "routed_scaling_factor", "q_lora_rank"}) {
    if (!object.contains(key)) top.fail(key, "is missing, and readers of this format differ in what that means");
  }
  config.vocab = top.integer("vocab_size", 1);
  config.width = top.integer("hidden_size", 1);
  config.num_layers = top.integer("num_hidden_layers", 1);
  config.dense_width = top.integer("intermediate_size", 1);
  config.expert_width = top.integer("moe_intermediate_size", 1);
  config.num_dense_layers = std::min(top.integer_or("first_k_dense_replace", 0, 0), config.num_layers);
  config.heads = top.integer("num_attention_heads", 1);
  if (top.integer_or("num_key_value_heads", config.heads, 1) != config.heads) {
    top.fail("num_key_value_heads", "differs from num_attention_heads; latent attention has one key and value a head");
  }
  if (top.has("q_lora_rank")) config.q_lora = top.integer("q_lora_rank", 1);
  config.kv_lora = top.integer("kv_lora_rank", 1);
  config.nope_dim = top.integer("qk_nope_head_dim", 1);
  config.rope_dim = top.integer("qk_rope_head_dim", 2);
  if (config.rope_dim % 2 != 0) top.fail("qk_rope_head_dim", "is odd; rotary features come in pairs");
  config.value_dim = top.integer("v_head_dim", 1);
  config.experts = top.integer("n_routed_experts", 1, 32767);  // chosen experts are kept as 16-bit numbers
  config.shared_experts = top.integer_or("n_shared_experts", 0, 0);
  config.top_k = top.integer("num_experts_per_tok", 1);
  config.num_groups = top.integer_or("n_group", 1, 1);
  config.top_groups = top.integer_or("topk_group", config.num_groups, 1);
  if (config.experts % config.num_groups != 0) top.fail("n_group", str("does not divide ", config.experts, " experts"));
  const int64_t group_size = config.experts / config.num_groups;
  if (config.top_groups > config.num_groups) top.fail("topk_group", str("exceeds n_group ", config.num_groups));
  if (config.num_groups > 1 && group_size < 2) {
    top.fail("n_group", "leaves groups of one expert; a group's score is the sum of its two best");
  }
  if (config.top_k > config.top_groups * group_size) {
    top.fail("num_experts_per_tok", "exceeds the experts of the chosen groups");
  }
  config.normalise_top_k = top.flag_or("norm_topk_prob", true);
  config.routed_scale = top.number_or("routed_scaling_factor", 1.0);
  config.norm_eps = top.number_or("rms_norm_eps", 1e-6);
  config.initializer_range = top.number_or("initializer_range", 0.02);
  config.tied_embeddings = top.flag_or("tie_word_embeddings", false);
  config.num_mtp_layers = top.has("num_nextn_predict_layers") ? top.integer("num_nextn_predict_layers", 0)
                                                              : top.integer_or("num_mtp_layers", 0, 0);
  config.max_positions = top.integer_or("max_position_embeddings", 0, 0);
  config.rope = parse_rope(top, config.rope_dim, config.max_positions);
  config.fp8_blocks = parse_fp8(top);
  return config;
}

ModelConfig load_model_config(const std::filesystem::path& folder) {
  const std::filesystem::path path = folder / "config.json";
  std::ifstream file(path);
  if (!file) {
    throw UserError(str(path.string(), ": cannot be read; model.path must be a Hugging Face folder with config.json"));
  }
  const json object = json::parse(file, nullptr, /*allow_exceptions=*/false);
  if (object.is_discarded()) throw UserError(str(path.string(), ": is not JSON"));
  return parse_model_config(object, path.string());
}

}  // namespace moetune
