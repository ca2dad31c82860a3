#include "lora/adapters/peft_config.h"

#include <algorithm>
#include <cmath>
#include <iterator>
#include <string_view>
#include <system_error>

#include <nlohmann/json.hpp>

#include "parallel/base/error.h"
#include "parallel/base/files.h"
#include "parallel/base/strict_json.h"
#include "parallel/base/text.h"

namespace moetune {
namespace {

using nlohmann::json;
using nlohmann::ordered_json;

constexpr const char* kConfigFile = "adapter_config.json";
constexpr int64_t kMostRank = 1 << 16;

/// What a key that must stand at nothing would mean.
struct Variant {
  std::string_view key, meaning;
};
constexpr Variant kVariants[] = {
    {"use_dora", "the magnitudes of DoRA"},
    {"fan_in_fan_out", "weights that lie transposed"},
    {"modules_to_save", "modules that were trained whole"},
    {"exclude_modules", "modules that are left out"},
    {"layers_to_transform", "adapters on some layers only"},
    {"layer_replication", "layers that are there several times"},
    {"trainable_token_indices", "trained rows of the embedding"},
    {"alora_invocation_tokens", "an adapter that acts behind certain tokens only"},
    {"lora_bias", "biases of B"},
    {"use_qalora", "QA-LoRA, whose A sees pooled inputs"},
    {"use_bdlora", "block-diagonal A or B"},
    {"loftq_config", "LoftQ, which changed the base"},
    {"eva_config", "EVA"},
    {"corda_config", "CorDA, which changed the base"},
    {"lora_ga_config", "LoRA-GA, which changed the base"},
    {"velora_config", "VeLoRA"},
    {"monteclora_config", "MonteCLoRA"},
    {"arrow_config", "routing between adapters (Arrow)"},
    {"kasa_config", "KaSA, which changed the base"},
    {"megatron_config", "parallel layers of Megatron"},
    {"ensure_weight_tying", "adapters of tied embeddings"},
};

bool is_nothing(const json& value) {
  return value.is_null() || value == false || ((value.is_array() || value.is_object()) && value.empty()) || value == "";
}

bool is_text_or_null(const json& value) { return value.is_null() || value.is_string(); }

bool is_texts(const json& value) {
  if (!value.is_array()) return false;
  for (const json& one : value) {
    if (!one.is_string()) return false;
  }
  return true;
}

/// The keys of one file.
class Reader {
 public:
  explicit Reader(const std::string& path) : path_(path), json_(read_json_object(path)) {}

  const json& file() const { return json_; }
  /// Null where the key is absent.
  json value(const char* key) const { return json_.contains(key) ? json_.at(key) : json(); }

  [[noreturn]] void fail(const std::string& key, const std::string& wanted) const {
    throw UserError(str(path_, ": ", key, " is ", shown(value(key.c_str())), wanted));
  }
  double number(const std::string& key, const json& value) const {
    if (!value.is_number() || !std::isfinite(value.get<double>())) {
      throw UserError(str(path_, ": ", key, " is ", shown(value), "; want a number"));
    }
    return value.get<double>();
  }
  int64_t rank(const std::string& key, const json& value) const {
    if (!value.is_number_unsigned() || value.get<uint64_t>() < 1 || value.get<uint64_t>() > kMostRank) {
      throw UserError(str(path_, ": ", key, " is ", shown(value), "; want a whole number from 1 to ", kMostRank));
    }
    return value.get<int64_t>();
  }
  bool flag(const char* key) const {
    const json found = value(key);
    if (!found.is_null() && !found.is_boolean()) fail(key, "; want true or false");
    return found == true;
  }
  /// An object from names to values, which `read` takes.
  template <typename Value, typename Read>
  std::map<std::string, Value> table(const char* key, const Read& read) const {
    const json found = value(key);
    if (!found.is_null() && !found.is_object()) fail(key, "; want an object of numbers");
    std::map<std::string, Value> table;
    if (found.is_null()) return table;
    for (const auto& [name, one] : found.items()) table[name] = read(str(key, ": ", in_quotes(name)), one);
    return table;
  }

 private:
  std::string path_;
  json json_;
};

void check_type(const Reader& reader, const std::string& path) {
  const json type = reader.value("peft_type");
  if (type != "LORA") {
    throw UserError(str(path, ": peft_type is ",
                        type.is_null()     ? std::string("missing")
                        : type.is_string() ? in_quotes(type.get<std::string>())
                                           : shown(type),
                        "; want LORA"));
  }
  const json task = reader.value("task_type");
  if (!task.is_null() && task != "CAUSAL_LM")
    reader.fail("task_type", "; want CAUSAL_LM: other tasks have other heads");
  const json bias = reader.value("bias");
  if (!bias.is_null() && bias != "none") reader.fail("bias", "; this program goes on from adapters without bias");
}

/// true, false, "gaussian" and "orthogonal" drew A (and B) and left the base alone. All others, PiSSA, OLoRA, CorDA,
/// LoftQ, ..., either subtracted B A from the base, so that it is another one than the checkpoint's, or may have.
void check_initialisation(const Reader& reader) {
  const json how = reader.value("init_lora_weights");
  if (how.is_null() || how.is_boolean() || how == "gaussian" || how == "orthogonal") return;
  reader.fail(
      "init_lora_weights",
      "; this program goes on from true, false, gaussian and orthogonal, which leave the base as it is. In PEFT, "
      "save_pretrained(..., path_initial_model_for_weight_conversion=...) turns PiSSA, CorDA and OLoRA adapters "
      "into such");
}

/// Keys that tell about an adapter and change no number. False: the key is none of them.
bool only_tells(const Reader& reader, const std::string& key, const json& value) {
  const auto want = [&](bool right, const char* wanted) {
    if (!right) reader.fail(key, str("; want ", wanted));
    return true;
  };
  if (key == "auto_mapping") return want(value.is_null() || value.is_object(), "an object or null");
  if (key == "inference_mode") return want(value.is_null() || value.is_boolean(), "true or false");
  if (key == "peft_version" || key == "revision" || key == "megatron_core" || key == "base_model_name_or_path") {
    return want(is_text_or_null(value), "text or null");
  }
  // They belong to use_qalora and layers_to_transform, which must stand at nothing.
  if (key == "qalora_group_size") return want(value.is_null() || value.is_number_integer(), "a whole number");
  if (key == "layers_pattern") return want(is_text_or_null(value) || is_texts(value), "text, texts or null");
  if (key == "runtime_config") {
    return want(is_nothing(value) || (value.is_object() && value.size() == 1 &&
                                      value.value("ephemeral_gpu_offload", json()).is_boolean()),
                "an object with ephemeral_gpu_offload");
  }
  return false;
}

void check_other_keys(const Reader& reader, const std::string& path) {
  static constexpr std::string_view kRead[] = {
      "peft_type",      "task_type",        "bias",         "init_lora_weights", "r",
      "lora_alpha",     "use_rslora",       "lora_dropout", "rank_pattern",      "alpha_pattern",
      "target_modules", "target_parameters"};
  for (const auto& [key, value] : reader.file().items()) {
    if (std::find(std::begin(kRead), std::end(kRead), key) != std::end(kRead)) continue;
    if (only_tells(reader, key, value) || is_nothing(value)) continue;
    const auto variant = std::find_if(std::begin(kVariants), std::end(kVariants),
                                      [&key = key](const Variant& one) { return one.key == key; });
    const std::string what = variant == std::end(kVariants) ? "which this program does not know"
                                                            : str("which stands for ", variant->meaning);
    throw UserError(str(path, ": ", in_quotes(key), " is ", shown(value), ", ", what,
                        "; this program goes on from plain LoRA, with two-dimensional tensors for each expert"));
  }
}

}  // namespace

bool PeftConfig::allows_rank(int64_t wanted) const {
  if (wanted == rank) return true;
  for (const auto& [key, of_pattern] : rank_pattern) {
    if (of_pattern == wanted) return true;
  }
  return false;
}

PeftConfig read_peft_config(const std::filesystem::path& folder) {
  namespace fs = std::filesystem;
  std::error_code ignored;
  const std::string path = (folder / kConfigFile).string();
  if (fs::is_regular_file(folder, ignored)) {
    throw UserError(str(folder.string(), ": is a file; adapter.from is the folder with ", kConfigFile));
  }
  if (!fs::exists(path, ignored)) {
    throw UserError(str(path, ": there is no such file; an adapter is a folder with ", kConfigFile,
                        " and adapter_model.safetensors, as PEFT's save_pretrained and moetune export write it"));
  }
  const Reader reader(path);
  check_type(reader, path);
  check_initialisation(reader);
  check_other_keys(reader, path);
  PeftConfig config;
  if (!reader.file().contains("r")) throw UserError(str(path, ": r is missing"));
  if (!reader.file().contains("lora_alpha")) throw UserError(str(path, ": lora_alpha is missing"));
  config.rank = reader.rank("r", reader.value("r"));
  config.alpha = reader.number("lora_alpha", reader.value("lora_alpha"));
  config.rslora = reader.flag("use_rslora");
  const json dropout = reader.value("lora_dropout");
  if (!dropout.is_null()) config.dropout = reader.number("lora_dropout", dropout);
  if (config.dropout < 0.0 || config.dropout > 1.0) reader.fail("lora_dropout", "; want a number from 0 to 1");
  const json base = reader.value("base_model_name_or_path");
  if (base.is_string()) config.base_model = base.get<std::string>();
  const json targets = reader.value("target_modules");
  if (is_texts(targets)) {
    config.target_modules = targets.get<std::vector<std::string>>();
  } else if (targets.is_string()) {
    config.target_modules = {targets.get<std::string>()};
  } else if (!targets.is_null()) {
    reader.fail("target_modules", "; want text or a list of texts");
  }
  const json parameters = reader.value("target_parameters");
  if (is_texts(parameters)) config.target_parameters = parameters.get<std::vector<std::string>>();
  else if (!parameters.is_null()) reader.fail("target_parameters", "; want a list of texts");
  config.rank_pattern = reader.table<int64_t>(
      "rank_pattern", [&](const std::string& key, const json& value) { return reader.rank(key, value); });
  config.alpha_pattern = reader.table<double>(
      "alpha_pattern", [&](const std::string& key, const json& value) { return reader.number(key, value); });
  return config;
}

void write_peft_config(const std::filesystem::path& folder, const PeftConfig& config) {
  ordered_json json;
  json["peft_type"] = "LORA";
  json["task_type"] = "CAUSAL_LM";
  json["base_model_name_or_path"] = config.base_model;
  json["r"] = config.rank;
  // Whole numbers as such: some readers type the field as an integer.
  if (config.alpha == std::floor(config.alpha)) json["lora_alpha"] = static_cast<int64_t>(config.alpha);
  else json["lora_alpha"] = config.alpha;
  json["lora_dropout"] = config.dropout;
  json["target_modules"] = config.target_modules;
  json["target_parameters"] =
      config.target_parameters.empty() ? ordered_json() : ordered_json(config.target_parameters);
  json["rank_pattern"] = ordered_json(config.rank_pattern);
  json["alpha_pattern"] = ordered_json(config.alpha_pattern);
  json["use_rslora"] = config.rslora;
  json["use_dora"] = false;
  json["bias"] = "none";
  json["fan_in_fan_out"] = false;
  json["init_lora_weights"] = true;
  json["inference_mode"] = true;
  json["modules_to_save"] = config.modules_to_save.empty() ? ordered_json() : ordered_json(config.modules_to_save);
  json["layers_to_transform"] = nullptr;
  json["layers_pattern"] = nullptr;
  write_text_atomically((folder / kConfigFile).string(),
                        json.dump(2, ' ', false, ordered_json::error_handler_t::replace) + "\n");
}

}  // namespace moetune
