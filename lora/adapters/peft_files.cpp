#include "lora/adapters/peft_files.h"

#include <cmath>
#include <set>

#include <nlohmann/json.hpp>

#include "lora/adapters/adapter.h"
#include "parallel/base/error.h"
#include "parallel/base/files.h"
#include "parallel/bytes/tensor_io.h"

namespace moetune {
namespace {

using nlohmann::ordered_json;

constexpr const char* kConfigFile = "adapter_config.json";
constexpr const char* kWeightsFile = "adapter_model.safetensors";

}  // namespace

std::string peft_key(const std::string& parameter_name) { return "base_model.model." + parameter_name; }

PeftConfig read_peft_config(const std::filesystem::path& folder) {
  const std::string path = (folder / kConfigFile).string();
  const ordered_json json = ordered_json::parse(read_text_file(path), nullptr, false);
  if (json.is_discarded() || !json.is_object()) throw UserError(str(path, ": is not a JSON object"));
  auto refuse = [&](const char* key, const std::string& allowed) {
    throw UserError(str(path, ": ", key, " is ", json.at(key).dump(), "; this program goes on from ", allowed));
  };
  const ordered_json type = json.value("peft_type", ordered_json("missing"));
  if (type != "LORA") {
    throw UserError(
        str(path, ": peft_type is ", type.is_string() ? type.get<std::string>() : type.dump(), "; want LORA"));
  }
  auto set = [&](const char* key) { return json.contains(key) && !json.at(key).is_null() && json.at(key) != false; };
  if (set("use_dora")) refuse("use_dora", "plain LoRA");
  if (set("fan_in_fan_out")) refuse("fan_in_fan_out", "linear maps");
  if (set("modules_to_save") && !json.at("modules_to_save").empty()) refuse("modules_to_save", "adapters alone");
  if (json.contains("bias") && json.at("bias") != "none") refuse("bias", "adapters without bias");
  if (set("target_parameters") && !json.at("target_parameters").empty()) {
    refuse("target_parameters", "two-dimensional tensors for each expert");
  }
  PeftConfig config;
  try {
    config.rank = json.at("r").get<int64_t>();
    config.alpha = json.at("lora_alpha").get<double>();
    config.rslora = json.value("use_rslora", false);
    config.dropout = json.value("lora_dropout", 0.0);
    config.base_model = json.contains("base_model_name_or_path") && json.at("base_model_name_or_path").is_string()
                            ? json.at("base_model_name_or_path").get<std::string>()
                            : "";
    if (json.contains("target_modules") && json.at("target_modules").is_array()) {
      config.target_modules = json.at("target_modules").get<std::vector<std::string>>();
    }
    config.rank_pattern = json.value("rank_pattern", std::map<std::string, int64_t>{});
    config.alpha_pattern = json.value("alpha_pattern", std::map<std::string, double>{});
  } catch (const nlohmann::json::exception& error) {
    throw UserError(str(path, ": ", error.what()));
  }
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
  json["target_parameters"] = nullptr;
  json["rank_pattern"] = ordered_json(config.rank_pattern);
  json["alpha_pattern"] = ordered_json(config.alpha_pattern);
  json["use_rslora"] = config.rslora;
  json["use_dora"] = false;
  json["bias"] = "none";
  json["fan_in_fan_out"] = false;
  json["init_lora_weights"] = true;
  json["inference_mode"] = true;
  json["modules_to_save"] = nullptr;
  json["layers_to_transform"] = nullptr;
  json["layers_pattern"] = nullptr;
  write_text_atomically((folder / kConfigFile).string(), json.dump(2) + "\n");
}

void load_peft_adapter(const std::filesystem::path& folder, ParameterSet& parameters, double alpha, bool rslora) {
  at::NoGradGuard no_grad;
  const PeftConfig config = read_peft_config(folder);
  if (!config.alpha_pattern.empty()) {
    throw UserError(str((folder / kConfigFile).string(), ": alpha_pattern gives ", config.alpha_pattern.begin()->first,
                        " an alpha of its own; this program "
                        "goes on from one alpha for all maps"));
  }
  // Shapes are compared below, so a map has one rank on both sides; its scale must be one too.
  for (const Parameter& parameter : parameters.all()) {
    if (parameter.info().role != Role::kAdapterA) continue;
    const int64_t rank = parameter.master().size(-2);
    const double saved = adapter_scale(config.alpha, rank, config.rslora), wanted = adapter_scale(alpha, rank, rslora);
    if (std::abs(saved - wanted) > 1e-9 * std::abs(wanted)) {
      throw UserError(str((folder / kConfigFile).string(), ": scales ", parameter.name(), " (rank ", rank, ") by ",
                          saved, ", the recipe by ", wanted, "; set adapter.alpha to ", config.alpha,
                          " and adapter.rslora to ", config.rslora ? "true" : "false"));
    }
  }
  const SafetensorsFile file((folder / kWeightsFile).string());
  std::set<std::string> used;
  auto read = [&](const std::string& name, at::Tensor target, const TensorPart& part) {
    const std::string key = peft_key(name);
    at::Tensor saved = read_tensor(file, key);
    const std::vector<int64_t> wanted = part.whole_shape(target.sizes());
    if (saved.sizes() != at::IntArrayRef(wanted)) {
      throw UserError(moetune::str(file.path(), ": ", key, " has shape ", saved.sizes(), ", the recipe asks for ",
                                   at::IntArrayRef(wanted)));
    }
    target.copy_(part.of(saved, target.sizes()));
    used.insert(key);
  };
  // Experts of other ranks are theirs to read: this rank only knows their names.
  for (Parameter& parameter : parameters.all()) {
    const ParameterInfo& info = parameter.info();
    if (info.num_experts == 0) {
      read(info.name, parameter.master(), info.part);
    } else {
      for (int64_t e = 0; e < parameter.master().size(0); ++e) {
        read(expert_name(info.name, info.first_expert + e), parameter.master()[e], info.part.of_row());
      }
      for (int64_t e = 0; e < info.num_experts; ++e) used.insert(peft_key(expert_name(info.name, e)));
    }
    parameter.refresh_working();
  }
  for (const std::string& name : file.names()) {
    if (used.count(name) == 0) {
      throw UserError(str(file.path(), ": holds ", name, ", which the recipe's adapter.targets leave out"));
    }
  }
}

}  // namespace moetune
