#include "lora/adapters/peft_files.h"

#include <cmath>
#include <set>
#include <string_view>
#include <system_error>

#include "lora/adapters/adapter.h"
#include "parallel/base/error.h"
#include "parallel/bytes/finite.h"
#include "parallel/bytes/tensor_io.h"

namespace moetune {
namespace {

constexpr const char* kConfigFile = "adapter_config.json";
constexpr const char* kWeightsFile = "adapter_model.safetensors";
constexpr std::string_view kLoraA = ".lora_A.weight";

}  // namespace

SafetensorsFile open_peft_weights(const std::filesystem::path& folder) {
  namespace fs = std::filesystem;
  std::error_code ignored;
  const fs::path path = folder / kWeightsFile;
  if (!fs::exists(path, ignored) && fs::exists(folder / "adapter_model.bin", ignored)) {
    throw UserError(str((folder / "adapter_model.bin").string(),
                        ": is a pickle, which can run code when it is read; moetune reads ", kWeightsFile,
                        ". Convert it where you trust it: python3 -c \"import torch, safetensors.torch as s; "
                        "s.save_file({k: v.contiguous() for k, v in torch.load('adapter_model.bin', "
                        "weights_only=True).items()}, 'adapter_model.safetensors')\""));
  }
  return SafetensorsFile(path.string());
}

void require_adapter_dtype(const TensorInfo& info) {
  if (info.dtype == DType::kF32 || info.dtype == DType::kBF16 || info.dtype == DType::kF16 ||
      info.dtype == DType::kF64) {
    return;
  }
  throw UserError(str(info.file, ": ", info.name, " is of dtype ", dtype_name(info.dtype),
                      "; adapters are read as F32, BF16, F16 or F64"));
}

std::string peft_key(const std::string& parameter_name) { return "base_model.model." + parameter_name; }

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
  const SafetensorsFile file = open_peft_weights(folder);
  std::set<std::string> used;
  auto read = [&](const std::string& name, at::Tensor target, const TensorPart& part) {
    const std::string key = peft_key(name);
    require_adapter_dtype(file.at(key));
    at::Tensor saved = read_tensor(file, key);
    const std::vector<int64_t> wanted = part.whole_shape(target.sizes());
    if (saved.sizes() != at::IntArrayRef(wanted)) {
      throw UserError(moetune::str(file.path(), ": ", key, " has shape ", saved.sizes(), ", the recipe asks for ",
                                   at::IntArrayRef(wanted)));
    }
    if (name.ends_with(kLoraA) && !config.allows_rank(saved.size(0))) {
      throw UserError(moetune::str((folder / kConfigFile).string(), ": r is ", config.rank,
                                   " and no rank_pattern has another, but ", key, " has rank ", saved.size(0),
                                   "; do adapter_config.json and adapter_model.safetensors belong together?"));
    }
    require_finite(saved, moetune::str(file.path(), ": ", key));
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
