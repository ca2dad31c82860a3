// Adapters as PEFT keeps them: adapter_config.json and adapter_model.safetensors, one pair of two-dimensional tensors a
// linear map, routed experts included: base_model.model.model.layers.3.mlp.experts.17.gate_proj.lora_A.weight.
//
//   load_peft_adapter("adapters/base", parameters, alpha, /*rslora=*/false);   // training goes on from it
//   PeftConfig config = read_peft_config("adapters/base");
#pragma once

#include <filesystem>
#include <map>
#include <string>
#include <vector>

#include "lora/adapters/parameter.h"

namespace moetune {

/// The fields of adapter_config.json that shape the numbers.
struct PeftConfig {
  int64_t rank = 0;
  double alpha = 0.0;
  bool rslora = false;
  double dropout = 0.0;
  std::vector<std::string> target_modules;
  std::map<std::string, int64_t> rank_pattern;  ///< module name (a suffix) -> rank
  std::map<std::string, double> alpha_pattern;
  std::string base_model;
};

/// "base_model.model." + the Hugging Face name.
std::string peft_key(const std::string& parameter_name);

/// Throws UserError for what is no LoRA adapter or what this program does not compute (DoRA, bias, modules_to_save,
/// fan_in_fan_out).
PeftConfig read_peft_config(const std::filesystem::path& folder);
/// Writes adapter_config.json with every field that PEFT and serving engines look for.
void write_peft_config(const std::filesystem::path& folder, const PeftConfig& config);

/// Sets masters and working copies from the adapter in `folder`. Every trained tensor must be there with its shape, and
/// nothing else; each map must be scaled alike, by alpha / R, or alpha / sqrt(R) with rsLoRA, of its own rank R:
/// UserError naming tensor, shapes or scales, and file otherwise.
void load_peft_adapter(const std::filesystem::path& folder, ParameterSet& parameters, double alpha, bool rslora);

}  // namespace moetune
