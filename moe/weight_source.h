// Where a model's weights come from: Hugging Face safetensors, or numbers drawn from the seed.
//
//   std::unique_ptr<WeightSource> source = open_pretrained(folder);
//   at::Tensor w = source->read("model.layers.0.self_attn.o_proj.weight", {O, I});
//
// Tensors are read one by one, by byte range, as the model asks for them: a rank reads only what it will own.
#pragma once

#include <torch/types.h>

#include <filesystem>
#include <memory>
#include <string>
#include <vector>

#include "moe/blueprint.h"

namespace moetune {

/// A tensor of a source, as read() gives it.
struct StoredTensor {
  std::string name;
  std::vector<int64_t> shape;
  at::ScalarType dtype = at::kFloat;  ///< where read() takes it
  std::string file;                   ///< where it lies, for messages
  uint64_t bytes = 0;                 ///< that it takes there
};

class WeightSource {
 public:
  virtual ~WeightSource() = default;
  /// The tensor `name` as stored (bf16, fp16, fp32, fp64; FP8 and MXFP4 blocks come as bf16, the latter with inputs
  /// before outputs, as their stacks lie where they are not quantised), of exactly `shape`, on the CPU or
  /// on the device the source was made for. All its values are finite, in bf16 too. Throws UserError naming tensor,
  /// file and both shapes, dtypes that are no weights, or values that are no numbers.
  virtual at::Tensor read(const std::string& name, at::IntArrayRef shape) = 0;
  /// Row `row` of the tensor `name`, which has `shape` and at least two dimensions: a tensor of one dimension less.
  virtual at::Tensor read_row(const std::string& name, int64_t row, at::IntArrayRef shape) = 0;
  virtual bool has(const std::string& name) const = 0;
  /// All tensors in the order in which they lie, whatever their dtypes; of weights that lie nowhere none. Reads no
  /// bytes.
  virtual std::vector<StoredTensor> tensors() const = 0;
  /// UserError unless the tensor `name` of tensors() has a dtype that read() takes. Reads no bytes.
  virtual void require_weight(const std::string& name) const = 0;
  /// Bytes read so far, for the progress line.
  virtual int64_t bytes_read() const = 0;
  /// What all tensors depend on, in lines: of a checkpoint name, size, time of last change and header of each file; of
  /// random weights seed and distribution. Equal texts, equal tensors, unless a file was changed in place and its time
  /// set back.
  virtual std::string identity() const = 0;
};

/// Reads model.safetensors, or the shards of model.safetensors.index.json, in `folder`.
std::unique_ptr<WeightSource> open_pretrained(const std::filesystem::path& folder);

/// UserError if config.json ties embedding and head while the checkpoint has a head of its own that differs: readers
/// would take different ones (transformers 5.17 unties them, earlier ones drop the head).
void require_tied_head(WeightSource& source, const Blueprint& blueprint);

/// Every tensor drawn from (seed, name, element): norms 1, correction biases 0, all else uniform with the config's
/// initializer_range as standard deviation. The same on every mesh.
std::unique_ptr<WeightSource> make_random_weights(const Blueprint& blueprint, uint64_t seed, at::Device device);

}  // namespace moetune
