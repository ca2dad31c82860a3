#include "trainer/exports/merge.h"

#include <ATen/ATen.h>

#include <map>
#include <set>

#include <nlohmann/json.hpp>

#include "parallel/base/error.h"
#include "parallel/base/units.h"
#include "parallel/bytes/finite.h"
#include "parallel/bytes/tensor_io.h"
#include "trainer/exports/base_model.h"
#include "trainer/exports/model_writer.h"
#include "trainer/exports/name_summary.h"
#include "trainer/exports/saved_run.h"
#include "trainer/exports/staged_folder.h"

namespace moetune {
namespace {

namespace fs = std::filesystem;
using Spec = SafetensorsWriter::Spec;

// Part of a delta's norm that rounding may disturb without a warning.
constexpr double kDisturbed = 0.1;

class Merge {
 public:
  explicit Merge(const SavedRun& saved) : saved_(saved), base_(saved.recipe()) {
    for (const BaseTensor& tensor : base_.tensors()) {
      // A step of a bias update is below the resolution of bf16.
      specs_.push_back({tensor.name, is_moved_bias(tensor) ? DType::kF32 : *dtype_of(tensor.dtype), tensor.shape});
      tensors_[tensor.name] = &tensor;
    }
    std::vector<std::string> homeless;
    for (const SavedAdapter& adapter : saved.adapters()) {
      const auto found = tensors_.find(adapter.path + ".weight");
      if (found == tensors_.end() || found->second->shape != std::vector<int64_t>{adapter.outputs, adapter.inputs}) {
        homeless.push_back(adapter.path);
      }
      adapters_[adapter.path + ".weight"] = &adapter;
    }
    if (!homeless.empty()) {
      std::string text;
      for (const std::string& line : summarise_names(homeless)) text += "\n  " + line;
      throw UserError(str(saved.recipe().model.path, ": has no weight of the right shape for these adapters of ",
                          saved.checkpoint().string(), "; is it the model of the run?", text));
    }
  }

  const std::vector<Spec>& specs() const { return specs_; }

  at::Tensor make(const Spec& spec) {
    const BaseTensor& tensor = *tensors_.at(spec.name);
    if (is_moved_bias(tensor)) {
      ++num_biases_;
      return saved_.router_bias(layer_of_name(tensor.name));
    }
    const at::Tensor stored = base_.read(tensor);
    const auto found = adapters_.find(tensor.name);
    return found == adapters_.end() ? stored : merged(*found->second, stored);
  }

  std::string report() const {
    std::string text = str("  ", num_changed_, " of ", specs_.size(), " tensors changed");
    if (adapters_.size() > static_cast<size_t>(num_changed_)) {
      text += str(" (the delta of ", adapters_.size() - static_cast<size_t>(num_changed_),
                  " is zero or vanishes in rounding)");
    }
    if (num_biases_ > 0) text += str(", and ", num_biases_, " correction biases of routers replaced");
    text += str("\n  largest relative change: ", largest_, " in ", largest_name_, "\n");
    if (!disturbed_.empty()) {
      text += str("  warning: rounding disturbs the delta by more than ", kDisturbed * 100, " % of its norm in ",
                  disturbed_.size(), " tensors, at worst by ", worst_ * 100, " % in ", worst_name_,
                  "; serve the adapter beside the model where that matters:\n");
      for (const std::string& line : summarise_names(disturbed_)) text += "      " + line + "\n";
    }
    const ModelRecipe& model = saved_.recipe().model;
    if (is_quantised(model.base)) {
      text += str("  note: the adapter was trained on weights in ", to_string(model.base),
                  " and is merged into the original ones; moetune export --base writes the former\n");
    }
    return text;
  }

 private:
  bool is_moved_bias(const BaseTensor& tensor) const {
    return tensor.used != nullptr && tensor.used->held == Held::kBias && saved_.router_bias_moved();
  }

  at::Tensor merged(const SavedAdapter& adapter, const at::Tensor& stored) {
    const at::Tensor weight = stored.to(at::kFloat);
    const at::Tensor delta =
        at::mm(saved_.read(adapter.path + ".lora_B.weight"), saved_.read(adapter.path + ".lora_A.weight"))
            .mul_(adapter.scale);
    at::Tensor result = (weight + delta).to(stored.scalar_type());
    // The adapter's numbers are finite, so this is fp16 that cannot hold the sum.
    require_finite(result, str(adapter.path, ".weight: merged into ", c10::toString(stored.scalar_type()), ", it"));
    if (at::equal(result, stored)) {
      note_disturbance(adapter, delta.norm().item<double>() > 0.0 ? 1.0 : 0.0);
      return stored;
    }
    ++num_changed_;
    const double delta_norm = delta.norm().item<double>(), weight_norm = weight.norm().item<double>();
    const double change = delta_norm / (weight_norm > 0.0 ? weight_norm : 1.0);
    if (change > largest_ || largest_name_.empty()) {
      largest_ = change;
      largest_name_ = adapter.path;
    }
    note_disturbance(adapter, (result.to(at::kFloat) - weight - delta).norm().item<double>() / delta_norm);
    return result;
  }

  void note_disturbance(const SavedAdapter& adapter, double part) {
    if (part <= kDisturbed) return;
    disturbed_.push_back(adapter.path);
    if (part > worst_) {
      worst_ = part;
      worst_name_ = adapter.path;
    }
  }

  const SavedRun& saved_;
  BaseModel base_;
  std::vector<Spec> specs_;
  std::map<std::string, const BaseTensor*> tensors_;
  std::map<std::string, const SavedAdapter*> adapters_;
  int64_t num_changed_ = 0, num_biases_ = 0;
  double largest_ = 0.0, worst_ = 0.0;
  std::string largest_name_, worst_name_;
  std::vector<std::string> disturbed_;
};

}  // namespace

std::string merge_adapter(const fs::path& run, const fs::path& to) {
  at::NoGradGuard no_grad;
  const SavedRun saved(run);
  if (!saved.recipe().adapter) {
    throw UserError(str(
        run.string(),
        ": was trained with adapter: none, so there is nothing to merge; moetune export --base writes its weights"));
  }
  Merge merge(saved);
  const fs::path source = saved.recipe().model.path;
  StagedFolder out(to);
  const WrittenModel written =
      write_model(out.path(), merge.specs(), [&](const Spec& spec) { return merge.make(spec); });
  copy_companions(source, out.path());
  write_model_config(source, out.path(), merge.specs());
  out.commit({{"kind", "merged"}, {"checkpoint", saved.origin()}, {"step", saved.step()}});
  return str("adapter of step ", saved.step(), " merged -> ", to.string(), "\n  from ", source.string(), " and ",
             saved.checkpoint().string(), "\n  ", bytes_text(static_cast<int64_t>(written.bytes)), " in ",
             written.num_files, written.num_files == 1 ? " file\n" : " files\n", merge.report());
}

}  // namespace moetune
