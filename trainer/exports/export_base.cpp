// export_base: the weights of a run as a model folder.
#include <ATen/ATen.h>

#include <map>

#include <nlohmann/json.hpp>

#include "lora/frozen_weight.h"
#include "parallel/base/error.h"
#include "parallel/base/name_summary.h"
#include "parallel/base/units.h"
#include "parallel/bytes/tensor_io.h"
#include "trainer/assemble.h"
#include "trainer/exports/base_model.h"
#include "trainer/exports/export.h"
#include "trainer/exports/model_writer.h"
#include "trainer/exports/saved_run.h"
#include "trainer/exports/staged_folder.h"
#include "trainer/exports/trained_weights.h"

namespace moetune {
namespace {

namespace fs = std::filesystem;
using Spec = SafetensorsWriter::Spec;

/// `stored` [O, I] packed as training packs it and made dense again, in `compute`.
at::Tensor through_frozen(const at::Tensor& stored, BaseFormat format, at::ScalarType compute) {
  FrozenWeight weight({format, 1, stored.size(0), stored.size(1)}, at::kCPU, compute);
  weight.set(0, stored);
  Scratch scratch(at::kCPU, compute);
  scratch.reserve(weight.scratch_elements());
  DequantCounters counters;
  weight.use(scratch, counters);
  return weight.dense().clone();
}

/// The tensors of a run's base as other programs should see them.
class HeldBase {
 public:
  explicit HeldBase(const SavedRun& saved)
      : saved_(saved),
        base_(saved.recipe()),
        format_(saved.recipe().model.base),
        compute_(scalar_type(saved.recipe().model.compute)),
        out_(compute_ == at::kBFloat16 ? at::kBFloat16 : at::kFloat) {
    for (const BaseTensor& tensor : base_.tensors()) {
      specs_.push_back({tensor.name, *dtype_of(dtype_for(tensor)), tensor.shape});
      tensors_[tensor.name] = &tensor;
    }
  }

  const std::vector<Spec>& specs() const { return specs_; }

  at::Tensor make(const Spec& spec) {
    const BaseTensor& tensor = *tensors_.at(spec.name);
    if (is_trained(tensor)) {
      ++num_trained_;
      return trained_weight(saved_, base_.blueprint(), tensor, out_, [&] { return frozen(tensor); });
    }
    if (tensor.used == nullptr) {
      copied_.push_back(tensor.name);
      return base_.read(tensor);
    }
    if (tensor.used->held == Held::kBias) {
      return saved_.router_bias_moved() ? saved_.router_bias(tensor.used->layer.number())
                                        : base_.read(tensor).to(at::kFloat);
    }
    return frozen(tensor);
  }

  std::string report() const {
    std::string text;
    if (!worst_name_.empty()) {
      text += str("  largest relative difference of a linear weight, ", to_string(format_),
                  " to the original: ", worst_, " in ", worst_name_, "\n");
    }
    if (num_trained_ > 0) {
      text += str("  ", num_trained_, " tensors as training left them: those of ",
                  to_string(trained_parts(saved_.recipe())), "\n");
    }
    if (saved_.router_bias_moved()) text += "  correction biases of the routers: as training left them\n";
    if (!copied_.empty()) {
      text += "  copied from the source, since the run had no use for them:\n";
      for (const std::string& line : summarise_names(copied_)) text += "      " + line + "\n";
    }
    return text;
  }
  std::string format_name() const { return to_string(format_); }

 private:
  /// As it was held where it did not train.
  at::Tensor frozen(const BaseTensor& tensor) {
    const at::Tensor stored = base_.read(tensor);
    switch (tensor.used->held) {
      case Held::kLinear:
        return changed_by_piece(tensor, stored, out_, [&](const DiskPiece& piece, const at::Tensor& part) {
          // Of the experts in one tensor some may have trained, and take these places.
          if (!trained_name(saved_, base_.blueprint(), piece.name).empty()) return part.to(out_);
          return compared(piece.name, part, through_frozen(part, format_, compute_).to(out_));
        });
      case Held::kJoint:
        return through_frozen(stored, format_ == BaseFormat::kFp32 ? BaseFormat::kFp32 : BaseFormat::kBf16, compute_)
            .to(out_);
      case Held::kCompute: return stored.to(compute_).to(out_);
      case Held::kStored: return stored;
      case Held::kBias: break;  // read above
    }
    throw InternalError(str(tensor.name, ": held in no known way"));
  }

  at::ScalarType dtype_for(const BaseTensor& tensor) const {
    if (is_trained(tensor)) return out_;
    if (tensor.used == nullptr || tensor.used->held == Held::kStored) return tensor.dtype;
    if (tensor.used->held == Held::kBias) return at::kFloat;
    return out_;
  }

  bool is_trained(const BaseTensor& tensor) const { return has_trained(saved_, base_.blueprint(), tensor); }

  at::Tensor compared(const std::string& name, const at::Tensor& stored, at::Tensor held) {
    const at::Tensor original = stored.to(at::kFloat);
    const double norm = original.norm().item<double>();
    const double difference = (held.to(at::kFloat) - original).norm().item<double>() / (norm > 0.0 ? norm : 1.0);
    if (worst_name_.empty() || difference > worst_) {
      worst_ = difference;
      worst_name_ = name;
    }
    return held;
  }

  const SavedRun& saved_;
  BaseModel base_;
  BaseFormat format_;
  at::ScalarType compute_, out_;
  std::vector<Spec> specs_;
  std::map<std::string, const BaseTensor*> tensors_;
  std::vector<std::string> copied_;
  int64_t num_trained_ = 0;
  double worst_ = 0.0;
  std::string worst_name_;
};

}  // namespace

std::string export_base(const fs::path& run, const fs::path& to, std::uint64_t shard_bytes) {
  at::NoGradGuard no_grad;
  const SavedRun saved(run);
  HeldBase base(saved);
  const fs::path source = saved.recipe().model.path;
  const bool trained = !saved.recipe().adapter;
  StagedFolder out(to, trained ? "trained weights" : "base");
  const WrittenModel written =
      write_model(out.path(), base.specs(), [&](const Spec& spec) { return base.make(spec); }, shard_bytes);
  copy_companions(source, out.path());
  write_model_config(source, out.path(), base.specs());
  out.commit({{"checkpoint", saved.origin()}, {"step", saved.step()}});
  const std::string what = trained ? str("trained weights of step ", saved.step())
                                   : str("frozen weights as trained on (", base.format_name(), ", dense again)");
  return str(what, " -> ", to.string(), "\n  from ", source.string(), " and ", saved.checkpoint().string(), "\n  ",
             base.specs().size(), " tensors, ", count_text(written.parameters), " parameters, ",
             bytes_text(static_cast<int64_t>(written.bytes)), " in ", written.num_files,
             written.num_files == 1 ? " file\n" : " files\n", base.report());
}

}  // namespace moetune
