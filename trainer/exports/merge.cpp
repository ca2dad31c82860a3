#include "trainer/exports/merge.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <map>
#include <optional>
#include <set>

#include <nlohmann/json.hpp>

#include "lora/formats/fp8.h"
#include "parallel/base/error.h"
#include "parallel/base/files.h"
#include "parallel/base/name_summary.h"
#include "parallel/base/units.h"
#include "parallel/bytes/finite.h"
#include "parallel/bytes/tensor_io.h"
#include "trainer/exports/base_model.h"
#include "trainer/exports/saved_run.h"
#include "trainer/exports/staged_folder.h"
#include "trainer/exports/trained_weights.h"
#include "trainer/recipe/recipe_meaning.h"

namespace moetune {
namespace {

namespace fs = std::filesystem;
using Spec = SafetensorsWriter::Spec;

// Part of a delta's norm that rounding may disturb without a warning.
constexpr double kDisturbed = 0.1;
constexpr const char* kScale = "_scale_inv";  // of FP8 blocks

class Merge {
 public:
  Merge(const SavedRun& saved, MergeFormat format)
      : saved_(saved), base_(saved.recipe()), trains_weights_(!saved.recipe().adapter) {
    if (format == MergeFormat::kHfFp8) open_fp8();
    for (const BaseTensor& tensor : base_.tensors()) {
      tensors_[tensor.name] = &tensor;
      if (const TensorInfo* blocks = fp8_of(tensor.name)) {
        const TensorInfo& scales = stored_->at(tensor.name + kScale);
        specs_.push_back({tensor.name, blocks->dtype, blocks->shape});
        specs_.push_back({scales.name, scales.dtype, scales.shape});
        scaled_[scales.name] = &tensor;
        continue;
      }
      // A step of a bias update is below the resolution of bf16.
      specs_.push_back({tensor.name, is_moved_bias(tensor) ? DType::kF32 : *dtype_of(tensor.dtype), tensor.shape});
    }
    std::map<std::string, std::vector<int64_t>> shapes;  // of what an adapter may be of
    for (const BaseTensor& tensor : base_.tensors()) {
      if (tensor.used == nullptr) shapes[tensor.name] = tensor.shape;
      else {
        for (const DiskPiece& piece : tensor.used->pieces) shapes[piece.name] = piece.shape;
      }
    }
    std::vector<std::string> homeless;
    for (const SavedAdapter& adapter : saved.adapters()) {
      const auto found = shapes.find(adapter.path + ".weight");
      if (found == shapes.end() || found->second != std::vector<int64_t>{adapter.outputs, adapter.inputs}) {
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
    const auto scales = scaled_.find(spec.name);
    if (scales != scaled_.end()) return fp8(*scales->second).scale_inv;
    const BaseTensor& tensor = *tensors_.at(spec.name);
    if (fp8_of(tensor.name) != nullptr) return fp8(tensor).weight;
    if (is_moved_bias(tensor)) {
      ++num_biases_;
      return saved_.router_bias(tensor.used->layer.number());
    }
    if (is_trained(tensor)) {
      ++num_replaced_;
      return trained_weight(saved_, base_.blueprint(), tensor, tensor.dtype, [&] { return base_.read(tensor); });
    }
    const at::Tensor stored = base_.read(tensor);
    if (tensor.used == nullptr) return merged(tensor.name, stored);
    return changed_by_piece(tensor, stored, tensor.dtype,
                            [&](const DiskPiece& piece, const at::Tensor& part) { return merged(piece.name, part); });
  }

  std::string report() const {
    if (trains_weights_) return trained_report();
    std::string text = str("  ", num_changed_, " of ", tensors_.size(), " tensors changed");
    if (adapters_.size() > static_cast<size_t>(num_changed_)) {
      text += str(" (the delta of ", adapters_.size() - static_cast<size_t>(num_changed_),
                  " is zero or vanishes in rounding)");
    }
    if (num_replaced_ > 0) {
      text +=
          str(", and ", num_replaced_, " replaced by what trained itself: ", to_string(trained_parts(saved_.recipe())));
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
  std::string trained_report() const {
    std::string text = str("  ", num_replaced_, " of ", tensors_.size(), " tensors trained");
    if (num_biases_ > 0) text += str(", and ", num_biases_, " correction biases of routers replaced");
    return text + "; all others are those of the source\n";
  }

  bool is_trained(const BaseTensor& tensor) const { return has_trained(saved_, base_.blueprint(), tensor); }

  bool is_moved_bias(const BaseTensor& tensor) const {
    return tensor.used != nullptr && tensor.used->held == Held::kBias && saved_.router_bias_moved();
  }

  at::Tensor merged(const std::string& name, const at::Tensor& stored) {
    const auto found = adapters_.find(name);
    return found == adapters_.end() ? stored : merged(*found->second, stored);
  }

  at::Tensor delta_of(const SavedAdapter& adapter) const {
    return at::mm(saved_.read(adapter.path + ".lora_B.weight"), saved_.read(adapter.path + ".lora_A.weight"))
        .mul_(adapter.scale);
  }

  at::Tensor merged(const SavedAdapter& adapter, const at::Tensor& stored) {
    const at::Tensor weight = stored.to(at::kFloat), delta = delta_of(adapter);
    at::Tensor result = (weight + delta).to(stored.scalar_type());
    // The adapter's numbers are finite, so this is fp16 that cannot hold the sum.
    require_finite(result, str(adapter.path, ".weight: merged into ", c10::toString(stored.scalar_type()), ", it"));
    if (at::equal(result, stored)) {
      note_disturbance(adapter, delta.norm().item<double>() > 0.0 ? 1.0 : 0.0);
      return stored;
    }
    note_change(adapter, weight, delta, result);
    return result;
  }

  void note_change(const SavedAdapter& adapter, const at::Tensor& weight, const at::Tensor& delta,
                   const at::Tensor& result) {
    ++num_changed_;
    const double delta_norm = delta.norm().item<double>(), weight_norm = weight.norm().item<double>();
    const double change = delta_norm / (weight_norm > 0.0 ? weight_norm : 1.0);
    if (change > largest_ || largest_name_.empty()) {
      largest_ = change;
      largest_name_ = adapter.path;
    }
    note_disturbance(adapter, (result.to(at::kFloat) - weight - delta).norm().item<double>() / delta_norm);
  }

  void open_fp8() {
    const ModelRecipe& model = saved_.recipe().model;
    if (model.weights == WeightOrigin::kPretrained) stored_.emplace(model.path);
    if (!stored_ || !base_.blueprint().fp8_blocks) {
      throw UserError(str("--for hf-fp8: the weights of ", model.path,
                          " are not in FP8 blocks (quantization_config of DeepSeek-V3's kind); merge with --for hf"));
    }
    const nlohmann::json config =
        nlohmann::json::parse(read_text_file((fs::path(model.path) / "config.json").string()));
    powers_of_two_ = config.at("quantization_config").value("scale_fmt", "") == "ue8m0";
  }

  /// The blocks of a tensor that leaves as such; null for one that does not.
  const TensorInfo* fp8_of(const std::string& name) const {
    const TensorInfo* info = stored_ ? stored_->find(name) : nullptr;
    return info != nullptr && info->dtype == DType::kF8E4M3 ? info : nullptr;
  }

  /// Blocks and scales, these in the dtype of the source. Called for each of the two, by whichever file it is in.
  const Fp8Blocks& fp8(const BaseTensor& tensor) {
    if (fp8_name_ == tensor.name) return fp8_;
    fp8_name_ = tensor.name;
    if (is_trained(tensor)) {
      if (noted_.insert(tensor.name).second) ++num_replaced_;
      const auto frozen = [&] { return base_.read(tensor).to(at::kFloat); };
      return fp8_ = quantised(trained_weight(saved_, base_.blueprint(), tensor, at::kFloat, frozen),
                              stored_->at(tensor.name + kScale).dtype);
    }
    fp8_ = {read_tensor(*stored_, tensor.name), read_tensor(*stored_, tensor.name + kScale)};
    const auto found =
        tensor.used == nullptr ? adapters_.find(tensor.name) : adapters_.find(tensor.used->pieces.at(0).name);
    if (found == adapters_.end()) return fp8_;
    const SavedAdapter& adapter = *found->second;
    const at::Tensor delta = delta_of(adapter);
    if (delta.count_nonzero().item<int64_t>() == 0) return fp8_;
    const at::Tensor scales = fp8_scales(fp8_.scale_inv, tensor.name + kScale);
    const at::Tensor weight = fp8_blocks_dequantise(fp8_.weight, scales, at::kFloat);
    const at::Tensor sum = weight + delta;
    require_finite(sum, str(adapter.path, ".weight: merged, it"));
    fp8_ = quantised(sum, *dtype_of(fp8_.scale_inv.scalar_type()));
    if (noted_.insert(tensor.name).second) {
      note_change(adapter, weight, delta,
                  fp8_blocks_dequantise(fp8_.weight, fp8_scales(fp8_.scale_inv, tensor.name + kScale), at::kFloat));
    }
    return fp8_;
  }

  /// `weight` in blocks, with scales of this dtype.
  Fp8Blocks quantised(const at::Tensor& weight, DType scale_dtype) const {
    const at::ScalarType dtype = *scalar_type_of(scale_dtype);
    const bool exponents = !at::isFloatingType(dtype) || dtype == at::kFloat8_e8m0fnu;
    Fp8Blocks blocks = fp8_blocks_quantise(weight, exponents || powers_of_two_);
    blocks.scale_inv = exponents
                           ? at::log2(blocks.scale_inv.to(at::kDouble)).round_().add_(127).to(at::kByte).view(dtype)
                           : blocks.scale_inv.to(dtype);
    return blocks;
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
  bool trains_weights_;
  std::optional<SafetensorsFolder> stored_;  // where FP8 blocks stay such
  bool powers_of_two_ = false;
  std::map<std::string, const BaseTensor*> scaled_;  // tensors in FP8 blocks, by the names of their scales
  std::string fp8_name_;                             // whose fp8_ is
  Fp8Blocks fp8_;
  std::set<std::string> noted_;
  std::vector<Spec> specs_;
  std::map<std::string, const BaseTensor*> tensors_;
  std::map<std::string, const SavedAdapter*> adapters_;
  int64_t num_changed_ = 0, num_biases_ = 0, num_replaced_ = 0;
  double largest_ = 0.0, worst_ = 0.0;
  std::string largest_name_, worst_name_;
  std::vector<std::string> disturbed_;
};

}  // namespace

MergeFormat merge_format(const std::string& word) {
  const auto words = words_of(MergeFormat::kHf);
  for (size_t i = 0; i < words.size(); ++i) {
    if (word == words[i]) return static_cast<MergeFormat>(i);
  }
  throw UserError(str("--for ", word, ": want hf or hf-fp8"));
}

std::string merge_run(const fs::path& run, const fs::path& to, MergeFormat format, std::uint64_t shard_bytes) {
  at::NoGradGuard no_grad;
  const SavedRun saved(run);
  Merge merge(saved, format);
  const fs::path source = saved.recipe().model.path;
  StagedFolder out(to, "merged");
  const WrittenModel written =
      write_model(out.path(), merge.specs(), [&](const Spec& spec) { return merge.make(spec); }, shard_bytes);
  copy_companions(source, out.path());
  if (format == MergeFormat::kHfFp8) copy_model_config(source, out.path());
  else write_model_config(source, out.path(), merge.specs());
  out.commit({{"checkpoint", saved.origin()}, {"step", saved.step()}});
  const std::string what = saved.recipe().adapter ? str("adapter of step ", saved.step(), " merged")
                                                  : str("trained weights of step ", saved.step());
  return str(what, " -> ", to.string(), "\n  from ", source.string(), " and ", saved.checkpoint().string(), "\n  ",
             bytes_text(static_cast<int64_t>(written.bytes)), " in ", written.num_files,
             written.num_files == 1 ? " file\n" : " files\n", merge.report());
}

}  // namespace moetune
