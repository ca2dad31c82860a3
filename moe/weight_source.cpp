#include "moe/weight_source.h"

#include <algorithm>
#include <cmath>
#include <ios>
#include <optional>
#include <tuple>
#include <vector>

#include "lora/adapters/counter_random.h"
#include "lora/formats/fp8.h"
#include "lora/formats/mxfp4.h"
#include "parallel/base/error.h"
#include "parallel/bytes/finite.h"
#include "parallel/bytes/safetensors.h"
#include "parallel/bytes/tensor_io.h"

namespace moetune {
namespace {

constexpr const char* kScale = "_scale_inv";                      // of FP8 blocks
constexpr const char *kBlocks = "_blocks", *kScales = "_scales";  // of MXFP4

bool ends_with(const std::string& text, const std::string& tail) {
  return text.size() >= tail.size() && text.compare(text.size() - tail.size(), tail.size(), tail) == 0;
}

/// UserError unless tensor `info` of `folder` is what read() takes: a float, or FP8 e4m3 with the scales of its blocks;
/// and no other dtype with scales beside it.
void require_weight_dtype(const SafetensorsFolder& folder, const TensorInfo& info) {
  const bool scaled = folder.find(info.name + kScale) != nullptr;
  switch (info.dtype) {
    case DType::kF8E4M3:
      if (!scaled) throw UserError(str(info.file, ": ", info.name, " is FP8 but there is no ", info.name, kScale));
      if (info.shape.size() != 2) {
        throw UserError(str(info.file, ": ", info.name, " is FP8 with ", info.shape.size(),
                            " dimensions; blocks of 128 x 128 have two"));
      }
      return;
    case DType::kF64:
    case DType::kF32:
    case DType::kF16:
    case DType::kBF16:
      if (!scaled) return;
      throw UserError(str(info.file, ": ", info.name, " is of dtype ", dtype_name(info.dtype), ", but there is ",
                          info.name, kScale,
                          " too, as for FP8; whether it was applied cannot be known. Take the scales out of the index "
                          "if the weights were converted"));
    default:
      throw UserError(str(info.file, ": ", info.name, " is of dtype ", dtype_name(info.dtype),
                          "; want BF16, F16, F32, F64 or F8_E4M3 with scales of its blocks"));
  }
}

class Pretrained final : public WeightSource {
 public:
  explicit Pretrained(const std::filesystem::path& folder) : folder_(folder) {}

  bool has(const std::string& name) const override {
    return folder_.find(name) != nullptr || folder_.find(name + kBlocks) != nullptr;
  }
  int64_t bytes_read() const override { return bytes_read_; }

  std::string identity() const override {
    std::string text;
    for (const SafetensorsFile* file : folder_.files()) {
      const FileIdentity& id = file->identity();
      text += str(std::filesystem::path(file->path()).filename().string(), " ", id.size, " bytes, changed ",
                  id.modified_s, " s ", id.modified_ns, " ns, header ", file->header_digest(), "\n");
    }
    return text;
  }

  std::vector<StoredTensor> tensors() const override {
    std::vector<const TensorInfo*> infos;
    for (const std::string& name : folder_.names()) {
      if (!belongs_to_another(name)) infos.push_back(&folder_.at(name));
    }
    std::sort(infos.begin(), infos.end(), [](const TensorInfo* a, const TensorInfo* b) {
      return std::tie(a->file, a->begin) < std::tie(b->file, b->begin);
    });
    std::vector<StoredTensor> tensors;
    for (const TensorInfo* info : infos) tensors.push_back(stored(*info));
    return tensors;
  }

  void require_weight(const std::string& name) const override {
    const TensorInfo* info = folder_.find(name);
    if (info != nullptr) require_weight_dtype(folder_, *info);
  }

  at::Tensor read(const std::string& name, at::IntArrayRef shape) override {
    if (folder_.find(name) == nullptr && folder_.find(name + kBlocks) != nullptr) {
      const TensorInfo& blocks = require_mxfp4(name, shape);
      return mxfp4(name, read_tensor(folder_, blocks.name), read_tensor(folder_, name + kScales));
    }
    const TensorInfo& info = require_shape(name, shape);
    require_weight_dtype(folder_, info);
    bytes_read_ += static_cast<int64_t>(info.bytes);
    const std::string place = str(info.file, ": ", name);
    at::Tensor tensor = read_tensor(folder_, name);
    require_finite(tensor, place);
    if (tensor.scalar_type() != at::kFloat8_e4m3fn) return tensor;
    // The scale may lie in another shard; the folder's index knows where.
    const TensorInfo& scale = folder_.at(name + kScale);
    try {
      tensor = fp8_blocks_dequantise(
          tensor, fp8_scales(read_tensor(folder_, scale.name), str(scale.file, ": ", scale.name)), at::kBFloat16);
    } catch (const UserError& error) {
      throw UserError(str(place, ": ", error.what()));
    }
    require_finite(tensor, str(place, " times ", scale.name));
    return tensor;
  }

  at::Tensor read_row(const std::string& name, int64_t row, at::IntArrayRef shape) override {
    if (folder_.find(name) == nullptr && folder_.find(name + kBlocks) != nullptr) {
      const TensorInfo& blocks = require_mxfp4(name, shape);
      return mxfp4(name, read_rows(folder_, blocks.name, row, 1)[0], read_rows(folder_, name + kScales, row, 1)[0]);
    }
    const TensorInfo& info = require_shape(name, shape);
    require_weight_dtype(folder_, info);
    MT_CHECK(info.dtype != DType::kF8E4M3, name, " is FP8, which has no rows of its own");
    at::Tensor tensor = read_rows(folder_, name, row, 1)[0];
    bytes_read_ += static_cast<int64_t>(tensor.nbytes());
    require_finite(tensor, str(info.file, ": ", name, ", row ", row));
    return tensor;
  }

 private:
  /// Scales, and blocks of which the stack has another name.
  bool belongs_to_another(const std::string& name) const {
    const auto without = [&](const std::string& tail) { return name.substr(0, name.size() - tail.size()); };
    if (ends_with(name, kScale) && folder_.find(without(kScale)) != nullptr) return true;
    return ends_with(name, kScales) && folder_.find(without(kScales) + kBlocks) != nullptr;
  }

  StoredTensor stored(const TensorInfo& info) const {
    if (!ends_with(info.name, kBlocks)) {
      const std::optional<at::ScalarType> stored_as = scalar_type_of(info.dtype);
      const at::ScalarType dtype = info.dtype == DType::kF8E4M3 ? at::kBFloat16 : stored_as.value_or(at::kByte);
      return {info.name, info.shape, dtype, info.file, info.bytes};
    }
    // [E, O, I / 32, 16] is [E, I, O].
    const std::vector<int64_t>& b = info.shape;
    if (b.size() != 4) throw UserError(str(info.file, ": ", info.name, " has ", b.size(), " dimensions, want 4"));
    return {info.name.substr(0, info.name.size() - std::string(kBlocks).size()),
            {b[0], b[2] * b[3] * 2, b[1]},
            at::kBFloat16,
            info.file,
            info.bytes};
  }

  const TensorInfo& require_shape(const std::string& name, at::IntArrayRef shape) const {
    const TensorInfo& info = folder_.at(name);
    if (at::IntArrayRef(info.shape) == shape) return info;
    throw UserError(moetune::str(info.file, ": ", name, " has shape ", at::IntArrayRef(info.shape),
                                 "; config.json asks for ", shape));
  }

  /// Blocks and scales of a stack of `shape` [E, I, O].
  const TensorInfo& require_mxfp4(const std::string& name, at::IntArrayRef shape) const {
    const TensorInfo &blocks = folder_.at(name + kBlocks), &scales = folder_.at(name + kScales);
    MT_CHECK(shape.size() == 3, name, " is asked for with ", shape.size(), " dimensions");
    const std::vector<int64_t> wanted = {shape[0], shape[2], shape[1] / 32};
    std::vector<int64_t> with_bytes = wanted;
    with_bytes.push_back(16);
    if (blocks.shape != with_bytes || scales.shape != wanted || shape[1] % 32 != 0) {
      throw UserError(moetune::str(blocks.file, ": ", blocks.name, " has shape ", at::IntArrayRef(blocks.shape),
                                   " and its scales ", at::IntArrayRef(scales.shape),
                                   "; config.json asks for experts of [I, O] = ", shape.slice(1), ", ", shape[0],
                                   " of them"));
    }
    return blocks;
  }

  /// [..., O, I / 32, 16] -> [..., I, O]
  at::Tensor mxfp4(const std::string& name, const at::Tensor& blocks, const at::Tensor& scales) {
    bytes_read_ += static_cast<int64_t>(blocks.nbytes() + scales.nbytes());
    const std::string place = str(folder_.at(name + kBlocks).file, ": ", name, kBlocks);
    const at::Tensor weight = mxfp4_dequantise(blocks, scales, at::kBFloat16, place);
    require_finite(weight, place);
    return weight.transpose(-1, -2);
  }

  SafetensorsFolder folder_;
  int64_t bytes_read_ = 0;
};

class RandomWeights final : public WeightSource {
 public:
  RandomWeights(const Blueprint& blueprint, uint64_t seed, at::Device device)
      : half_width_(blueprint.initializer_range * std::sqrt(3.0)),
        tied_(blueprint.tied_embeddings),
        seed_(seed),
        device_(device) {}

  // The MTP module shares the trunk's embedding and head (report section 2.2): it has no copies of its own.
  bool has(const std::string& name) const override {
    if (name == "lm_head.weight") return !tied_;
    return name.rfind("model.layers.", 0) != 0 ||
           !(ends_with(name, ".embed_tokens.weight") || ends_with(name, ".shared_head.head.weight"));
  }
  int64_t bytes_read() const override { return 0; }
  std::vector<StoredTensor> tensors() const override { return {}; }
  void require_weight(const std::string&) const override {}
  at::Tensor read_row(const std::string& name, int64_t, at::IntArrayRef) override {
    throw InternalError(str(name, ": weights drawn from the seed are drawn tensor by tensor"));
  }
  std::string identity() const override {
    return moetune::str("random, seed ", seed_, ", half width ", std::hexfloat, half_width_, "\n");
  }

  at::Tensor read(const std::string& name, at::IntArrayRef shape) override {
    const auto options = at::TensorOptions(at::kFloat).device(device_);
    if (ends_with(name, "e_score_correction_bias")) return at::zeros(shape, options);
    if (shape.size() == 1) return at::ones(shape, options);
    const int64_t numel = c10::multiply_integers(shape);
    // Held in bf16 and drawn in pieces: the generator's integers take twelve times the bytes.
    at::Tensor drawn = at::empty({numel}, options.dtype(at::kBFloat16));
    const uint64_t key = stream_key(seed_, name);
    constexpr int64_t kPiece = int64_t{1} << 25;
    for (int64_t first = 0; first < numel; first += kPiece) {
      const int64_t count = std::min(kPiece, numel - first);
      drawn.narrow(0, first, count)
          .copy_(counter_uniform(key, first, count, device_).mul_(2 * half_width_).sub_(half_width_));
    }
    return drawn.view(shape);
  }

 private:
  double half_width_;
  bool tied_;
  uint64_t seed_;
  at::Device device_;
};

}  // namespace

std::unique_ptr<WeightSource> open_pretrained(const std::filesystem::path& folder) {
  return std::make_unique<Pretrained>(folder);
}

void require_tied_head(WeightSource& source, const Blueprint& blueprint) {
  // By the names on disk or by those of the blueprint.
  const std::string prefix = source.has("model.embed_tokens.weight") ? "" : blueprint.naming.prefix;
  const std::string embedding = prefix + "model.embed_tokens.weight", head = prefix + "lm_head.weight";
  if (!blueprint.tied_embeddings || !source.has(head)) return;
  const std::vector<int64_t> shape = {blueprint.vocab, blueprint.width};
  if (at::equal(source.read(embedding, shape).to(at::kFloat), source.read(head, shape).to(at::kFloat))) return;
  throw UserError(str("config.json says tie_word_embeddings: true, but the checkpoint holds ", head,
                      ", which differs "
                      "from ",
                      embedding,
                      "; readers disagree on which one counts. If the model has a head of its own, set "
                      "tie_word_embeddings to false in config.json; if not, take ",
                      head, " out of the checkpoint"));
}

std::unique_ptr<WeightSource> make_random_weights(const Blueprint& blueprint, uint64_t seed, at::Device device) {
  return std::make_unique<RandomWeights>(blueprint, seed, device);
}

}  // namespace moetune
