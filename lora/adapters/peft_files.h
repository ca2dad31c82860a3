// Adapters as PEFT keeps them: adapter_config.json and adapter_model.safetensors, one pair of two-dimensional tensors a
// linear map, routed experts included: base_model.model.model.layers.3.mlp.experts.17.gate_proj.lora_A.weight.
//
//   load_peft_adapter("adapters/base", parameters, alpha, /*rslora=*/false);   // training goes on from it
//   PeftConfig config = read_peft_config("adapters/base");
#pragma once

#include <filesystem>
#include <string>

#include "lora/adapters/parameter.h"
#include "lora/adapters/peft_config.h"
#include "parallel/bytes/safetensors.h"

namespace moetune {

/// "base_model.model." + the Hugging Face name.
std::string peft_key(const std::string& parameter_name);

/// Opens adapter_model.safetensors. UserError if it is not there or no safetensors file; it says what to do with an
/// adapter_model.bin.
SafetensorsFile open_peft_weights(const std::filesystem::path& folder);
/// UserError unless the tensor is one of floats of 16 to 64 bits.
void require_adapter_dtype(const TensorInfo& info);

/// What can be said of an adapter before there are parameters to compare it with: that both files are there, and that
/// load_peft_adapter takes such a configuration. UserError.
void require_peft_adapter(const std::filesystem::path& folder);

/// Sets masters and working copies from the adapter in `folder`. Every trained tensor must be there with its shape and
/// finite, and nothing else; each map must be scaled alike, by alpha / R, or alpha / sqrt(R) with rsLoRA, of its own
/// rank R, which must be one that adapter_config.json gives: UserError naming tensor, shapes or scales, and file
/// otherwise.
void load_peft_adapter(const std::filesystem::path& folder, ParameterSet& parameters, double alpha, bool rslora);
/// The same of the parameters of one stage of several; returns the names in the file that are none of its own, which
/// other stages must take: require_taken() of those that none did.
std::vector<std::string> load_peft_adapter_part(const std::filesystem::path& folder, ParameterSet& parameters,
                                                double alpha, bool rslora);
void require_taken(const std::filesystem::path& folder, const std::vector<std::string>& left);

}  // namespace moetune
