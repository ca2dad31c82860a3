#include "moe/families/config_reader.h"

#include <algorithm>
#include <cmath>

#include <nlohmann/json.hpp>

#include "parallel/base/error.h"
#include "parallel/base/strict_json.h"
#include "parallel/base/text.h"

namespace moetune {
namespace {

using nlohmann::json;

constexpr int64_t kMostExpertsOfAllLayers = 1 << 18;
constexpr double kMostParameters = 1e15;

void read_yarn(const ConfigReader& top, const ConfigReader& scaling, int64_t max_positions, RotarySpec& rotary) {
  rotary.scaling = RotarySpec::Scaling::kYarn;
  rotary.original_max_positions = scaling.number("original_max_position_embeddings");
  // transformers prefers the key at the top.
  if (top.number_or("original_max_position_embeddings", rotary.original_max_positions) !=
      rotary.original_max_positions) {
    scaling.fail("original_max_position_embeddings", "differs from the key of that name at the top of the file");
  }
  if (rotary.original_max_positions <= 0.0) scaling.fail("original_max_position_embeddings", "is not above 0");
  rotary.factor = scaling.has("factor") ? scaling.number("factor")
                                        : static_cast<double>(max_positions) / rotary.original_max_positions;
  if (rotary.factor < 1.0) scaling.fail("factor", str("is ", rotary.factor, ", want at least 1"));
  rotary.beta_fast = scaling.number_or("beta_fast", 32);
  rotary.beta_slow = scaling.number_or("beta_slow", 1);
  rotary.truncate = scaling.flag_or("truncate", true);
  rotary.mscale = scaling.optional_number("mscale");
  rotary.mscale_all_dim = scaling.optional_number("mscale_all_dim");
  rotary.attention_factor = scaling.optional_number("attention_factor");
  // 0 stands for "not given", as in the reference.
  if (rotary.beta_fast == 0.0) rotary.beta_fast = 32;
  if (rotary.beta_slow == 0.0) rotary.beta_slow = 1;
  if (rotary.beta_fast < 0.0 || rotary.beta_slow < 0.0) scaling.fail("beta_fast", "or beta_slow is below 0");
  if (rotary.mscale == 0.0) rotary.mscale.reset();
  if (rotary.mscale_all_dim == 0.0) rotary.mscale_all_dim.reset();
}

void read_llama3(const ConfigReader& scaling, RotarySpec& rotary) {
  rotary.scaling = RotarySpec::Scaling::kLlama3;
  rotary.factor = scaling.number("factor");
  rotary.original_max_positions = scaling.number("original_max_position_embeddings");
  rotary.low_freq_factor = scaling.number("low_freq_factor");
  rotary.high_freq_factor = scaling.number("high_freq_factor");
  if (rotary.factor < 1.0) scaling.fail("factor", str("is ", rotary.factor, ", want at least 1"));
  if (rotary.original_max_positions <= 0.0) scaling.fail("original_max_position_embeddings", "is not above 0");
  if (!(rotary.low_freq_factor > 0.0 && rotary.high_freq_factor >= rotary.low_freq_factor)) {
    scaling.fail("high_freq_factor", str("is ", rotary.high_freq_factor, ", want at least low_freq_factor ",
                                         rotary.low_freq_factor, ", which is above 0"));
  }
}

/// What the object `scaling` says, which stands under rope_parameters or rope_scaling.
RotarySpec read_scaling(const ConfigReader& top, const ConfigReader& scaling, RotarySpec rotary, int64_t max_positions,
                        bool partial) {
  rotary.theta = scaling.number_or("rope_theta", rotary.theta);
  if (rotary.theta <= 1.0) scaling.fail("rope_theta", str("is ", rotary.theta, ", want above 1"));
  if (!partial && scaling.number_or("partial_rotary_factor", 1.0) != 1.0) {
    scaling.fail("partial_rotary_factor", "is not 1; all rotary features of a head are rotated in this family");
  }
  const std::string kind = scaling.text_or("rope_type", scaling.text_or("type", "default"));
  if (kind == "default") return rotary;
  if (kind == "yarn") read_yarn(top, scaling, max_positions, rotary);
  else if (kind == "llama3") read_llama3(scaling, rotary);
  else scaling.fail("type", str("is ", single_quoted(kind), "; this program computes default, yarn and llama3"));
  return rotary;
}

}  // namespace

std::string single_quoted(const std::string& text) {
  const std::string safe = in_quotes(text);
  return "'" + safe.substr(1, safe.size() - 2) + "'";
}

ConfigReader::ConfigReader(const json& object, std::string place) : object_(object), place_(std::move(place)) {
  if (!object_.is_object()) throw UserError(str(place_, ": is ", shown(object_), ", want a JSON object"));
}

bool ConfigReader::has(const char* key) const { return object_.contains(key) && !object_.at(key).is_null(); }

bool ConfigReader::names(const char* key) const { return object_.contains(key); }

int64_t ConfigReader::integer(const char* key, int64_t low, int64_t high) const {
  const json& value = at(key);
  const bool fits = value.is_number_unsigned() ? value.get<uint64_t>() <= static_cast<uint64_t>(high)
                                               : value.is_number_integer() && value.get<int64_t>() <= high;
  if (!fits || value.get<int64_t>() < low) {
    fail(key, str("is ", shown(value), ", want a whole number of at least ", low, " and at most ", high));
  }
  return value.get<int64_t>();
}

int64_t ConfigReader::integer_or(const char* key, int64_t otherwise, int64_t low, int64_t high) const {
  return has(key) ? integer(key, low, high) : otherwise;
}

int64_t ConfigReader::integer_of_either(const char* key, const char* other, int64_t low, int64_t high) const {
  const bool both = has(key) && has(other);
  const int64_t value = integer(has(key) || !has(other) ? key : other, low, high);
  if (both && integer(other, low, high) != value) {
    fail(other, str("is ", shown(at(other)), ", but ", key, " is ", value, "; they mean the same"));
  }
  return value;
}

double ConfigReader::number(const char* key) const {
  const json& value = at(key);
  if (!value.is_number() || !std::isfinite(value.get<double>())) {
    fail(key, str("is ", shown(value), ", want a number"));
  }
  return value.get<double>();
}

double ConfigReader::number_or(const char* key, double otherwise) const { return has(key) ? number(key) : otherwise; }

std::optional<double> ConfigReader::optional_number(const char* key) const {
  return has(key) ? std::optional<double>(number(key)) : std::nullopt;
}

double ConfigReader::number_within(const char* key, double otherwise, double low, double high) const {
  const double value = number_or(key, otherwise);
  if (value < low || value > high) fail(key, str("is not within ", low, " and ", high));
  return value;
}

bool ConfigReader::flag_or(const char* key, bool otherwise) const {
  if (!has(key)) return otherwise;
  if (!at(key).is_boolean()) fail(key, str("is ", shown(at(key)), ", want true or false"));
  return at(key).get<bool>();
}

std::string ConfigReader::text_or(const char* key, const std::string& otherwise) const {
  if (!has(key)) return otherwise;
  if (!at(key).is_string()) fail(key, str("is ", shown(at(key)), ", want text"));
  return at(key).get<std::string>();
}

std::vector<int64_t> ConfigReader::integers(const char* key, int64_t low, int64_t high) const {
  const json& list = at(key);
  if (!list.is_array()) fail(key, str("is ", shown(list), ", want a list of whole numbers"));
  std::vector<int64_t> values;
  for (const json& value : list) {
    if (!value.is_number_integer() || value < low || value > high) {
      fail(key, str("holds ", shown(value), ", want whole numbers of at least ", low, " and at most ", high));
    }
    values.push_back(value.get<int64_t>());
  }
  return values;
}

std::vector<std::string> ConfigReader::texts(const char* key) const {
  const json& list = at(key);
  if (!list.is_array()) fail(key, str("is ", shown(list), ", want a list of texts"));
  std::vector<std::string> values;
  for (const json& value : list) {
    if (!value.is_string()) fail(key, str("holds ", shown(value), ", want texts"));
    values.push_back(value.get<std::string>());
  }
  return values;
}

const json& ConfigReader::at(const char* key) const {
  if (!has(key)) fail(key, "is missing");
  return object_.at(key);
}

ConfigReader ConfigReader::object(const char* key) const { return {at(key), str(place_, ": ", key)}; }

void ConfigReader::only(const char* key, const std::string& allowed) const {
  const std::string value = text_or(key, allowed);
  if (value != allowed) fail(key, str("is ", single_quoted(value), "; only '", allowed, "' is computed"));
}

void ConfigReader::only(const char* key, bool allowed, const std::string& problem) const {
  if (flag_or(key, allowed) != allowed) fail(key, problem);
}

void ConfigReader::require(std::initializer_list<const char*> keys) const {
  for (const char* key : keys) {
    if (!names(key)) fail(key, "is missing, and readers of this format differ in what that means");
  }
}

void ConfigReader::fail(const std::string& key, const std::string& problem) const {
  throw UserError(str(place_, ": ", key, " ", problem));
}

void ConfigReader::read_common(Blueprint& blueprint, bool mxfp4) const {
  blueprint.vocab = integer("vocab_size", 1, kMostVocabulary);
  blueprint.width = integer("hidden_size", 1, kMostWidth);
  blueprint.norm_eps = number_within("rms_norm_eps", 1e-6, 0.0, 1.0);
  blueprint.initializer_range = number_within("initializer_range", 0.02, 0.0, 1e6);
  blueprint.tied_embeddings = flag_or("tie_word_embeddings", false);
  blueprint.max_positions = integer_or("max_position_embeddings", 0, 0);
  only("hidden_act", "silu");
  blueprint.mxfp4_experts =
      mxfp4 && has("quantization_config") && object("quantization_config").text_or("quant_method", "") == "mxfp4";
  blueprint.fp8_blocks = !blueprint.mxfp4_experts && fp8_blocks();
  if (number_or("attention_dropout", 0.0) != 0.0) {
    fail("attention_dropout", "is not 0; attention is computed without dropout");
  }
}

void ConfigReader::read_router_sizes(RouterSpec& router, const char* key, const char* other) const {
  router.experts = integer_of_either(key, other, 1, kMostExperts);
  router.top_k = integer("num_experts_per_tok", 1, kMostExperts);
  if (router.top_k > router.experts) fail("num_experts_per_tok", str("exceeds ", router.experts, " experts"));
}

void ConfigReader::read_router_groups(RouterSpec& router, RouterSpec::Choice choice) const {
  router.num_groups = integer_or("n_group", 1, 1);
  router.top_groups = integer_or("topk_group", router.num_groups, 1);
  router.choice = router.num_groups > 1 ? choice : RouterSpec::Choice::kGreedy;
  if (router.experts % router.num_groups != 0) fail("n_group", str("does not divide ", router.experts, " experts"));
  const int64_t group_size = router.experts / router.num_groups;
  if (router.top_groups > router.num_groups) fail("topk_group", str("exceeds n_group ", router.num_groups));
  if (router.choice == RouterSpec::Choice::kGroupsByBestTwo && group_size < 2) {
    fail("n_group", "leaves groups of one expert; a group's score is the sum of its two best");
  }
  if (router.top_k > router.top_groups * group_size) {
    fail("num_experts_per_tok", "exceeds the experts of the chosen groups");
  }
}

AttentionSpec ConfigReader::read_grouped_query(RotarySpec& rotary, int64_t max_positions, double rotated) const {
  AttentionSpec attention;
  attention.kind = AttentionSpec::Kind::kGroupedQuery;
  attention.heads = integer("num_attention_heads", 1, kMostHeads);
  attention.kv_heads = integer_or("num_key_value_heads", attention.heads, 1, attention.heads);
  if (attention.heads % attention.kv_heads != 0) {
    fail("num_key_value_heads",
         str("is ", attention.kv_heads, ", which does not divide num_attention_heads ", attention.heads));
  }
  const int64_t width = integer("hidden_size", 1, kMostWidth);
  if (!has("head_dim") && width % attention.heads != 0) {
    fail("num_attention_heads", str("does not divide hidden_size ", width, ", and there is no head_dim"));
  }
  attention.value_dim = integer_or("head_dim", width / attention.heads, 1, kMostHeads);
  const double turning = static_cast<double>(attention.value_dim) * partial_rotary_factor(rotated);
  attention.rotary_dim = static_cast<int64_t>(turning);
  if (attention.rotary_dim < 2 || attention.rotary_dim % 2 != 0 || attention.rotary_dim > attention.value_dim) {
    fail("head_dim", str("of ", attention.value_dim, " leaves ", attention.rotary_dim,
                         " rotary features, want an even number of at least 2 and at most head_dim"));
  }
  attention.nope_dim = attention.value_dim - attention.rotary_dim;
  attention.softmax_scale = 1.0 / std::sqrt(static_cast<double>(attention.value_dim));
  rotary.layout = RotarySpec::Layout::kHalves;
  rotary.dim = attention.rotary_dim;
  rotary = this->rotary(rotary, max_positions, /*partial=*/true);
  return attention;
}

int64_t ConfigReader::num_layers() const { return integer("num_hidden_layers", 1, kMostLayers); }

void ConfigReader::add_layers(Blueprint& blueprint, const LayerSpec& layer, int64_t dense_otherwise) const {
  const int64_t num = num_layers();
  const int64_t dense_width = integer("intermediate_size", 1, kMostFeatures);
  const int64_t num_dense = std::min(integer_or("first_k_dense_replace", dense_otherwise, 0), num);
  blueprint.layers.assign(num, layer);
  for (int64_t i = 0; i < num_dense; ++i) blueprint.layers[i].dense_width = dense_width;
  if (!has("mlp_layer_types")) return;
  const std::vector<std::string> types = texts("mlp_layer_types");
  if (static_cast<int64_t>(types.size()) != num) {
    fail("mlp_layer_types", str("names ", types.size(), " layers, but num_hidden_layers is ", num));
  }
  for (int64_t i = 0; i < num; ++i) {
    if (types[i] != "dense" && types[i] != "sparse") {
      fail("mlp_layer_types", str("holds ", single_quoted(types[i]), ", want 'dense' or 'sparse'"));
    }
    const bool dense = types[i] == "dense";
    if (has("first_k_dense_replace") && dense != (i < num_dense)) {
      fail("mlp_layer_types", str("calls layer ", i, " ", types[i], ", but first_k_dense_replace is ", num_dense));
    }
    blueprint.layers[i].dense_width = dense ? dense_width : 0;
  }
}

void ConfigReader::read_mtp(Blueprint& blueprint, const LayerSpec& layer) const {
  if (!has("num_nextn_predict_layers") && !has("num_mtp_layers")) return;
  blueprint.num_mtp_layers = integer_of_either("num_nextn_predict_layers", "num_mtp_layers", 0, kMostLayers);
  blueprint.mtp_layer = layer;
}

RotarySpec ConfigReader::rotary(RotarySpec base, int64_t max_positions, bool partial) const {
  base.theta = number_or("rope_theta", base.theta);
  if (base.theta <= 1.0) fail("rope_theta", str("is ", base.theta, ", want above 1"));
  if (!partial && number_or("partial_rotary_factor", 1.0) != 1.0) {
    fail("partial_rotary_factor", "is not 1; all rotary features of a head are rotated in this family");
  }
  std::optional<RotarySpec> found;
  const char* found_under = nullptr;
  for (const char* key : {"rope_parameters", "rope_scaling"}) {
    if (!has(key)) continue;
    const ConfigReader scaling = object(key);
    if (at(key).empty()) continue;
    for (const auto& [name, value] : at(key).items()) {
      if (value.is_object()) {
        scaling.fail(name, str("is ", shown(value), "; one rotary scaling for all layers is computed"));
      }
    }
    const RotarySpec rotary = read_scaling(*this, scaling, base, max_positions, partial);
    if (found && !(*found == rotary)) {
      fail(key, str("says ", rotary_text(rotary), ", but ", found_under, " says ", rotary_text(*found),
                    "; readers disagree on which one counts: remove the one that the model was not trained with"));
    }
    found = rotary;
    found_under = key;
  }
  return found.value_or(base);
}

double ConfigReader::partial_rotary_factor(double otherwise) const {
  std::optional<double> found = optional_number("partial_rotary_factor");
  for (const char* key : {"rope_parameters", "rope_scaling"}) {
    if (!has(key) || !at(key).is_object()) continue;
    const ConfigReader scaling = object(key);
    const std::optional<double> factor = scaling.optional_number("partial_rotary_factor");
    if (factor && found && *factor != *found) {
      scaling.fail("partial_rotary_factor", str("is ", *factor, ", but elsewhere in the file it is ", *found));
    }
    if (factor) found = factor;
  }
  const double factor = found.value_or(otherwise);
  if (!(factor > 0.0 && factor <= 1.0))
    fail("partial_rotary_factor", str("is ", factor, ", want above 0 and at most 1"));
  return factor;
}

bool ConfigReader::fp8_blocks() const {
  if (!has("quantization_config")) return false;
  const ConfigReader quantised = object("quantization_config");
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
  if (format != "e4m3" && format != "float8_e4m3fn") {
    quantised.fail("fmt", str("is ", single_quoted(format), "; only e4m3 is read"));
  }
  return true;
}

/// Each size is bounded by now, so no product of a tensor's sizes leaves the range of an int64; their sum is taken in
/// doubles.
void ConfigReader::check_size(const Blueprint& blueprint, const char* experts_key) const {
  const int64_t experts = blueprint.router.experts;
  if ((blueprint.num_layers() + blueprint.num_mtp_layers) * experts > kMostExpertsOfAllLayers) {
    fail("num_hidden_layers", str("is ", blueprint.num_layers(), " with ", experts_key, " ", experts, "; at most ",
                                  kMostExpertsOfAllLayers, " experts in all layers are read"));
  }
  double all = 0.0;
  for (const TensorSpec& tensor : blueprint.tensors(/*with_mtp=*/blueprint.num_mtp_layers > 0)) {
    double numbers = static_cast<double>(std::max<int64_t>(1, tensor.stack));
    for (const int64_t size : tensor.shape) numbers *= static_cast<double>(size);
    all += numbers;
  }
  if (all > kMostParameters) {
    throw UserError(str(place_, ": num_hidden_layers, hidden_size, num_attention_heads, ", experts_key,
                        " and the widths give a model of some ", all, " parameters; at most ", kMostParameters,
                        " are read"));
  }
}

}  // namespace moetune
