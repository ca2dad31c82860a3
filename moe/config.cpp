#include "moe/config.h"

#include <algorithm>
#include <cmath>
#include <system_error>

#include <nlohmann/json.hpp>

#include "parallel/base/error.h"
#include "parallel/base/strict_json.h"
#include "parallel/base/text.h"

namespace moetune {
namespace {

using nlohmann::json;

// What no model comes near, and what keeps every product of sizes far from 2^63.
constexpr int64_t kMostLayers = 1 << 12, kMostWidth = 1 << 20, kMostFeatures = 1 << 24, kMostHeads = 1 << 16;
constexpr int64_t kMostVocabulary = 1 << 27, kMostExperts = 32767;  // chosen experts are kept as 16-bit numbers
constexpr int64_t kMostExpertsOfAllLayers = 1 << 18;
constexpr double kMostParameters = 1e15;

/// A text of the file between quotes, its control characters escaped.
std::string single_quoted(const std::string& text) {
  const std::string safe = in_quotes(text);
  return "'" + safe.substr(1, safe.size() - 2) + "'";
}

/// Typed access to config.json whose errors name file and key.
class Reader {
 public:
  Reader(const json& object, std::string place) : object_(object), place_(std::move(place)) {
    if (!object_.is_object()) throw UserError(str(place_, ": is ", shown(object_), ", want a JSON object"));
  }

  bool has(const char* key) const { return object_.contains(key) && !object_.at(key).is_null(); }
  int64_t integer(const char* key, int64_t low, int64_t high = int64_t{1} << 40) const {
    const json& value = at(key);
    const bool fits = value.is_number_unsigned() ? value.get<uint64_t>() <= static_cast<uint64_t>(high)
                                                 : value.is_number_integer() && value.get<int64_t>() <= high;
    if (!fits || value.get<int64_t>() < low) {
      fail(key, str("is ", shown(value), ", want a whole number of at least ", low, " and at most ", high));
    }
    return value.get<int64_t>();
  }
  int64_t integer_or(const char* key, int64_t otherwise, int64_t low, int64_t high = int64_t{1} << 40) const {
    return has(key) ? integer(key, low, high) : otherwise;
  }
  double number(const char* key) const {
    const json& value = at(key);
    if (!value.is_number() || !std::isfinite(value.get<double>())) {
      fail(key, str("is ", shown(value), ", want a number"));
    }
    return value.get<double>();
  }
  double number_or(const char* key, double otherwise) const { return has(key) ? number(key) : otherwise; }
  std::optional<double> optional_number(const char* key) const {
    return has(key) ? std::optional<double>(number(key)) : std::nullopt;
  }
  bool flag_or(const char* key, bool otherwise) const {
    if (!has(key)) return otherwise;
    if (!at(key).is_boolean()) fail(key, str("is ", shown(at(key)), ", want true or false"));
    return at(key).get<bool>();
  }
  std::string text_or(const char* key, const std::string& otherwise) const {
    if (!has(key)) return otherwise;
    if (!at(key).is_string()) fail(key, str("is ", shown(at(key)), ", want text"));
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

/// What the object `scaling` says, which stands under rope_parameters or rope_scaling.
RopeConfig parse_rope_object(const Reader& top, const Reader& scaling, RopeConfig rope, int64_t max_positions) {
  rope.theta = scaling.number_or("rope_theta", rope.theta);
  if (rope.theta <= 1.0) scaling.fail("rope_theta", str("is ", rope.theta, ", want above 1"));
  if (scaling.number_or("partial_rotary_factor", 1.0) != 1.0) {
    scaling.fail("partial_rotary_factor", "is not 1; all of qk_rope_head_dim is rotated here");
  }
  const std::string kind = scaling.text_or("rope_type", scaling.text_or("type", "default"));
  if (kind == "default") return rope;
  if (kind != "yarn") scaling.fail("type", str("is ", single_quoted(kind), "; this program computes default and yarn"));
  rope.kind = RopeConfig::Kind::kYarn;
  rope.original_max_positions = scaling.number("original_max_position_embeddings");
  // transformers prefers the key at the top.
  if (top.number_or("original_max_position_embeddings", rope.original_max_positions) != rope.original_max_positions) {
    scaling.fail("original_max_position_embeddings", "differs from the key of that name at the top of the file");
  }
  if (rope.original_max_positions <= 0.0) scaling.fail("original_max_position_embeddings", "is not above 0");
  rope.factor = scaling.has("factor") ? scaling.number("factor")
                                      : static_cast<double>(max_positions) / rope.original_max_positions;
  if (rope.factor < 1.0) scaling.fail("factor", str("is ", rope.factor, ", want at least 1"));
  rope.beta_fast = scaling.number_or("beta_fast", 32);
  rope.beta_slow = scaling.number_or("beta_slow", 1);
  rope.truncate = scaling.flag_or("truncate", true);
  rope.mscale = scaling.optional_number("mscale");
  rope.mscale_all_dim = scaling.optional_number("mscale_all_dim");
  rope.attention_factor = scaling.optional_number("attention_factor");
  // 0 stands for "not given", as in the reference.
  if (rope.beta_fast == 0.0) rope.beta_fast = 32;
  if (rope.beta_slow == 0.0) rope.beta_slow = 1;
  if (rope.beta_fast < 0.0 || rope.beta_slow < 0.0) scaling.fail("beta_fast", "or beta_slow is below 0");
  if (rope.mscale == 0.0) rope.mscale.reset();
  if (rope.mscale_all_dim == 0.0) rope.mscale_all_dim.reset();
  return rope;
}

RopeConfig parse_rope(const Reader& top, int64_t rope_dim, int64_t max_positions) {
  RopeConfig plain;
  plain.dim = rope_dim;
  plain.theta = top.number_or("rope_theta", 10000.0);
  if (plain.theta <= 1.0) top.fail("rope_theta", str("is ", plain.theta, ", want above 1"));
  if (top.number_or("partial_rotary_factor", 1.0) != 1.0) {
    top.fail("partial_rotary_factor", "is not 1; all of qk_rope_head_dim is rotated here");
  }
  std::optional<RopeConfig> found;
  const char* found_under = nullptr;
  for (const char* key : {"rope_parameters", "rope_scaling"}) {
    if (!top.has(key)) continue;
    const Reader scaling(top.at(key), str(top.place(), ": ", key));
    if (top.at(key).empty()) continue;
    const RopeConfig rope = parse_rope_object(top, scaling, plain, max_positions);
    if (found && !(*found == rope)) {
      top.fail(key, str("says ", rope_text(rope), ", but ", found_under, " says ", rope_text(*found),
                        "; readers disagree on which one counts: remove the one that the model was not trained with"));
    }
    found = rope;
    found_under = key;
  }
  return found.value_or(plain);
}

bool parse_fp8(const Reader& top) {
  if (!top.has("quantization_config")) return false;
  const Reader quantised(top.at("quantization_config"), str(top.place(), ": quantization_config"));
  const std::string method = quantised.text_or("quant_method", "");
  if (method != "fp8") {
    quantised.fail("quant_method",
                   str("is ", single_quoted(method), "; weights may be bf16, fp16, fp32, or fp8 in blocks"));
  }
  const json& block = quantised.at("weight_block_size");
  if (block != json::array({128, 128})) {
    quantised.fail("weight_block_size", str("is ", shown(block), ", want [128, 128]"));
  }
  const std::string format = quantised.text_or("fmt", "e4m3");
  if (format != "e4m3") quantised.fail("fmt", str("is ", single_quoted(format), "; only e4m3 is read"));
  return true;
}

/// Two keys for one thing: the number of the first that is there.
int64_t integer_of_either(const Reader& top, const char* key, const char* other, int64_t low, int64_t high) {
  const bool both = top.has(key) && top.has(other);
  const int64_t value = top.integer(top.has(key) || !top.has(other) ? key : other, low, high);
  if (both && top.integer(other, low, high) != value) {
    top.fail(other, str("is ", shown(top.at(other)), ", but ", key, " is ", value, "; they mean the same"));
  }
  return value;
}

/// Each size is bounded by now, so none of these products leaves the range of a double; nor, once they are found small
/// enough, that of an int64.
void check_size(const Reader& top, const ModelConfig& c) {
  const auto number = [](int64_t value) { return static_cast<double>(value); };
  if ((c.num_layers + c.num_mtp_layers) * c.experts > kMostExpertsOfAllLayers) {
    top.fail("num_hidden_layers", str("is ", c.num_layers, " with n_routed_experts ", c.experts, "; at most ",
                                      kMostExpertsOfAllLayers, " experts in all layers are read"));
  }
  const double width = number(c.width), heads = number(c.heads);
  const double attention =
      width * number(c.q_lora.value_or(0)) + heads * number(c.qk_dim()) * (c.q_lora ? number(*c.q_lora) : width) +
      width * number(c.kv_lora + c.rope_dim) + heads * number(c.nope_dim + c.value_dim) * number(c.kv_lora) +
      heads * number(c.value_dim) * width;
  const double experts = 3.0 * width * number(c.expert_width) * number(c.experts + c.shared_experts);
  const double layer = attention + 3.0 * width * number(c.dense_width) + experts + number(c.experts) * width;
  const double all = 2.0 * width * number(c.vocab) + number(c.num_layers + c.num_mtp_layers) * layer;
  if (all > kMostParameters) {
    throw UserError(str(top.place(),
                        ": num_hidden_layers, hidden_size, num_attention_heads, n_routed_experts and "
                        "the widths give a model of some ",
                        all, " parameters; at most ", kMostParameters, " are read"));
  }
}

}  // namespace

std::string rope_text(const RopeConfig& rope) {
  if (rope.kind == RopeConfig::Kind::kDefault) return str("default, theta ", rope.theta);
  std::string text = str("yarn ", rope.factor, " x ", rope.original_max_positions, " positions, theta ", rope.theta,
                         ", beta ", rope.beta_fast, " to ", rope.beta_slow);
  if (rope.mscale) text += str(", mscale ", *rope.mscale);
  if (rope.mscale_all_dim) text += str(", mscale_all_dim ", *rope.mscale_all_dim);
  if (rope.attention_factor) text += str(", attention factor ", *rope.attention_factor);
  return text + (rope.truncate ? "" : ", not truncated");
}

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
  const Reader top(object, place);
  ModelConfig config;
  config.model_type = top.text_or("model_type", "");
  if (config.model_type != "deepseek_v3" && config.model_type != "kimi_k2") {
    top.fail("model_type", str("is ", single_quoted(config.model_type),
                               "; this program trains deepseek_v3 (and kimi_k2, which computes the same)"));
  }
  auto only = [&](const char* key, const std::string& allowed) {
    const std::string value = top.text_or(key, allowed);
    if (value != allowed) top.fail(key, str("is ", single_quoted(value), "; only '", allowed, "' is computed"));
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

  if (top.number_or("attention_dropout", 0.0) != 0.0) {
    top.fail("attention_dropout", "is not 0; attention is computed without dropout");
  }
  if (object.contains("norm_topk_prob") && object.at("norm_topk_prob").is_null()) {
    top.fail("norm_topk_prob", "is null, want true or false");
  }

  // DeepSeek's own code and transformers take different values where these are absent (null says "none" to both).
  for (const char* key : {"first_k_dense_replace", "n_shared_experts", "n_group", "topk_group", "norm_topk_prob",
                          "routed_scaling_factor", "q_lora_rank"}) {
    if (!object.contains(key)) top.fail(key, "is missing, and readers of this format differ in what that means");
  }
  config.vocab = top.integer("vocab_size", 1, kMostVocabulary);
  config.width = top.integer("hidden_size", 1, kMostWidth);
  config.num_layers = top.integer("num_hidden_layers", 1, kMostLayers);
  config.dense_width = top.integer("intermediate_size", 1, kMostFeatures);
  config.expert_width = top.integer("moe_intermediate_size", 1, kMostFeatures);
  config.num_dense_layers = std::min(top.integer_or("first_k_dense_replace", 0, 0), config.num_layers);
  config.heads = top.integer("num_attention_heads", 1, kMostHeads);
  if (top.integer_or("num_key_value_heads", config.heads, 1) != config.heads) {
    top.fail("num_key_value_heads", "differs from num_attention_heads; latent attention has one key and value a head");
  }
  if (top.has("q_lora_rank")) config.q_lora = top.integer("q_lora_rank", 1, kMostWidth);
  config.kv_lora = top.integer("kv_lora_rank", 1, kMostWidth);
  config.nope_dim = top.integer("qk_nope_head_dim", 1, kMostHeads);
  config.rope_dim = top.integer("qk_rope_head_dim", 2, kMostHeads);
  if (config.rope_dim % 2 != 0) top.fail("qk_rope_head_dim", "is odd; rotary features come in pairs");
  if (top.integer_or("qk_head_dim", config.qk_dim(), 1) != config.qk_dim()) {
    top.fail("qk_head_dim", str("is not qk_nope_head_dim + qk_rope_head_dim, which is ", config.qk_dim()));
  }
  config.value_dim = top.integer("v_head_dim", 1, kMostHeads);
  config.experts = integer_of_either(top, "n_routed_experts", "num_local_experts", 1, kMostExperts);
  config.shared_experts = top.integer_or("n_shared_experts", 0, 0, kMostExperts);
  config.top_k = top.integer("num_experts_per_tok", 1, kMostExperts);
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
  if (config.norm_eps < 0.0 || config.norm_eps > 1.0) top.fail("rms_norm_eps", "is not within 0 and 1");
  config.initializer_range = top.number_or("initializer_range", 0.02);
  if (config.initializer_range < 0.0 || config.initializer_range > 1e6) {
    top.fail("initializer_range", "is not within 0 and 1e6");
  }
  config.tied_embeddings = top.flag_or("tie_word_embeddings", false);
  if (top.has("num_nextn_predict_layers") || top.has("num_mtp_layers")) {
    config.num_mtp_layers = integer_of_either(top, "num_nextn_predict_layers", "num_mtp_layers", 0, kMostLayers);
  }
  config.max_positions = top.integer_or("max_position_embeddings", 0, 0);
  config.rope = parse_rope(top, config.rope_dim, config.max_positions);
  config.fp8_blocks = parse_fp8(top);
  check_size(top, config);
  return config;
}

ModelConfig load_model_config(const std::filesystem::path& folder) {
  namespace fs = std::filesystem;
  const fs::path path = folder / "config.json";
  std::error_code ignored;
  if (fs::is_regular_file(folder, ignored)) {
    throw UserError(str(folder.string(), ": is a file; model.path must be the Hugging Face folder that holds it"));
  }
  if (!fs::exists(path, ignored)) {
    throw UserError(str(path.string(), ": cannot be read; model.path must be a Hugging Face folder with config.json"));
  }
  return parse_model_config(read_json_object(path.string()), path.string());
}

}  // namespace moetune
