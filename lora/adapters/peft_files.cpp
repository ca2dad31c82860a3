#include "lora/adapters/peft_files.h"

#include <algorithm>
#include <cmath>
#include <map>
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

PeftConfig read_config(const std::filesystem::path& folder) {
  PeftConfig config = read_peft_config(folder);
  if (!config.alpha_pattern.empty()) {
    throw UserError(str((folder / kConfigFile).string(), ": alpha_pattern gives ", config.alpha_pattern.begin()->first,
                        " an alpha of its own; this program goes on from one alpha for all maps"));
  }
  return config;
}

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

void require_peft_adapter(const std::filesystem::path& folder) {
  read_config(folder);
  open_peft_weights(folder);
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

namespace {

/// The tensors of an adapter's file by the names of this program: with or without what a multimodal checkpoint puts in
/// front of its text model's.
class AdapterFile {
 public:
  AdapterFile(const std::filesystem::path& folder, const PeftConfig& config)
      : config_path_((folder / kConfigFile).string()), config_(config), file_(open_peft_weights(folder)) {
    for (const std::string& name : file_.names()) {
      std::string plain = name;
      for (const std::string_view part : {"language_model.model.", "model.language_model."}) {
        const std::string with = peft_key(std::string(part));
        if (name.starts_with(with)) plain = peft_key("model." + name.substr(with.size()));
      }
      names_.emplace(std::move(plain), name);
    }
  }

  const std::string& path() const { return file_.path(); }
  bool has(const std::string& name) const { return names_.count(peft_key(name)) > 0; }
  void note_used(const std::string& name) { used_.insert(peft_key(name)); }
  /// The tensor `name` of `wanted` shape. `rank`: what adapter_config.json must allow where it is an A; 0: no A.
  at::Tensor read(const std::string& name, at::IntArrayRef wanted, int64_t rank) {
    const auto found = names_.find(peft_key(name));
    const std::string key = found == names_.end() ? peft_key(name) : found->second;
    require_adapter_dtype(file_.at(key));
    at::Tensor saved = read_tensor(file_, key);
    if (saved.sizes() != wanted) {
      throw UserError(
          moetune::str(file_.path(), ": ", key, " has shape ", saved.sizes(), ", the recipe asks for ", wanted));
    }
    if (rank > 0 && !config_.allows_rank(rank)) {
      throw UserError(moetune::str(config_path_, ": r is ", config_.rank, " and no rank_pattern has another, but ", key,
                                   " has rank ", rank,
                                   "; do adapter_config.json and adapter_model.safetensors belong together?"));
    }
    require_finite(saved, moetune::str(file_.path(), ": ", key));
    note_used(name);
    return saved;
  }
  std::vector<std::string> unused() const {
    std::vector<std::string> left;
    for (const auto& [plain, name] : names_) {
      if (used_.count(plain) == 0) left.push_back(name);
    }
    return left;
  }

 private:
  std::string config_path_;
  const PeftConfig& config_;
  SafetensorsFile file_;
  std::map<std::string, std::string> names_;
  std::set<std::string> used_;
};

int64_t rank_of_a(const ParameterInfo& info, int64_t rank) { return info.role == Role::kAdapterA ? rank : 0; }

void read_one(AdapterFile& file, const ParameterInfo& info, const std::string& name, const at::Tensor& target,
              const TensorPart& part) {
  const at::Tensor saved = file.read(name, part.whole_shape(target.sizes()), rank_of_a(info, target.size(0)));
  target.copy_(part.of(saved, target.sizes()));
}

// PEFT keeps all experts' A as [E R, I], an expert's rows together, and B as [O, R E], an expert's columns apart.
void read_joint(AdapterFile& file, Parameter& parameter) {
  const ParameterInfo& info = parameter.info();
  const TensorPart part = info.part.of_row();
  const bool is_a = info.role == Role::kAdapterA;
  const int64_t E = info.joint_experts;
  const std::vector<int64_t> one = part.whole_shape(parameter.master().sizes().slice(1));
  std::string name = info.joint_name;
  // Alone, the first of two parameters is the only one that is wrapped.
  constexpr std::string_view kFirst = ".base_layer";
  const size_t first = name.find(kFirst);
  if (first != std::string::npos && !file.has(name)) name.erase(first, kFirst.size());
  const at::Tensor saved =
      is_a ? file.read(name, {E * one[0], one[1]}, one[0]) : file.read(name, {one[0], one[1] * E}, 0);
  const at::Tensor all = is_a ? saved.view({E, one[0], one[1]}) : saved.view({one[0], one[1], E}).permute({2, 0, 1});
  for (int64_t e = 0; e < parameter.master().size(0); ++e) {
    const at::Tensor target = parameter.master()[e];
    target.copy_(part.of(all[info.expert(e)], target.sizes()));
  }
  // An expert without an adapter has its place in the tensor: with a B of zeros it adds nothing there either.
  for (int64_t e = 0; e < E && !is_a && !info.experts.empty(); ++e) {
    if (std::binary_search(info.experts.begin(), info.experts.end(), e) || !all[e].any().item<bool>()) continue;
    throw UserError(
        str(file.path(), ": ", peft_key(name), " adapts expert ", e, ", which the recipe's adapter.experts leave out"));
  }
}

}  // namespace

void load_peft_adapter(const std::filesystem::path& folder, ParameterSet& parameters, double alpha, bool rslora) {
  require_taken(folder, load_peft_adapter_part(folder, parameters, alpha, rslora));
}

void require_taken(const std::filesystem::path& folder, const std::vector<std::string>& left) {
  if (left.empty()) return;
  throw UserError(str(open_peft_weights(folder).path(), ": holds ", left.front(),
                      ", which the recipe's adapter.targets leave out"));
}

std::vector<std::string> load_peft_adapter_part(const std::filesystem::path& folder, ParameterSet& parameters,
                                                double alpha, bool rslora) {
  at::NoGradGuard no_grad;
  const PeftConfig config = read_config(folder);
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
  AdapterFile file(folder, config);
  bool joint = false;
  // Experts of other ranks are theirs to read: this rank only knows their names.
  for (Parameter& parameter : parameters.all()) {
    const ParameterInfo& info = parameter.info();
    if (info.role == Role::kWeight) continue;  // a router that trains beside the adapter starts as the model has it
    if (info.num_experts == 0) {
      read_one(file, info, info.name, parameter.master(), info.part);
    } else if (!info.joint_name.empty()) {
      joint = true;
      read_joint(file, parameter);
    } else {
      for (int64_t e = 0; e < parameter.master().size(0); ++e) {
        read_one(file, info, expert_name(info.name, info.expert(e)), parameter.master()[e], info.part.of_row());
      }
      for (int64_t i = 0; i < info.num_experts; ++i) {
        file.note_used(expert_name(info.name, info.experts.empty() ? i : info.experts[i]));
      }
    }
    parameter.refresh_working();
  }
  if (!config.target_parameters.empty() && !joint) {
    throw UserError(str((folder / kConfigFile).string(), ": target_parameters names ", config.target_parameters.front(),
                        ": tensors of all experts together; this family's experts have adapters of their own"));
  }
  return file.unused();
}

}  // namespace moetune
