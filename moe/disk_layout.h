// Where the tensors of a model lie in a checkpoint: which tensor of it holds which of the blueprint's, and how.
//
//   for (const DiskTensor& tensor : disk_tensors(blueprint, /*with_mtp=*/false)) write(tensor.name, tensor.shape);
//   auto source = in_disk_layout(open_pretrained(folder), blueprint);   // read by the blueprint's names
//
// Most families lay a tensor of the blueprint down as it is, an expert's under its own number. Llama-4 and gpt-oss lay
// a layer's experts down as one tensor with inputs before outputs, gate and up in it beside each other or alternating.
#pragma once

#include <torch/types.h>

#include <memory>
#include <string>
#include <vector>

#include "moe/blueprint.h"
#include "moe/weight_source.h"

namespace moetune {

/// Where one tensor of the model, or one expert's of a stack, lies.
struct DiskPlace {
  std::string name;            ///< of the tensor on disk
  std::vector<int64_t> shape;  ///< of that tensor
  int64_t expert = -1;         ///< its row in the tensor; -1: it is the tensor
  bool transposed = false;     ///< the row is [I, O]
  int64_t first_output = 0;    ///< of the row's outputs, where it holds those of other maps too

  /// The part of the stored tensor, or of the stored row of an expert, that is a tensor of `shape`: a view.
  at::Tensor part(const at::Tensor& stored, at::IntArrayRef shape) const;
};

/// A tensor of the model within a tensor on disk.
struct DiskPiece {
  std::string name;  ///< the blueprint's, with the expert's number
  std::vector<int64_t> shape;
  DiskPlace place;
};

struct DiskTensor {
  std::string name;
  std::vector<int64_t> shape;
  Held held = Held::kCompute;
  LayerId layer;
  bool may_be_shared = false;  ///< embedding and head of the MTP module: absent where a checkpoint shares the trunk's
  std::vector<DiskPiece> pieces;
  /// Whether it is a stack of which each expert's row holds one tensor of the model or several.
  bool lies_in_pieces() const { return !pieces.empty() && pieces.front().place.expert >= 0; }
};

/// In the order of the layers, experts in theirs; the MTP module, as layer `num_layers`, last.
std::vector<DiskTensor> disk_tensors(const Blueprint& blueprint, bool with_mtp);
/// Where a tensor lies, and of a stack that of `expert`.
DiskPlace disk_place(const Blueprint& blueprint, const TensorSpec& tensor, int64_t expert);

/// Names on disk of what a run of the model does not read: the vision tower of a multimodal checkpoint, an MTP module
/// that does not train, layers beyond those of config.json.
std::vector<std::string> unused_tensors(const WeightSource& source, const Blueprint& blueprint, bool with_mtp);

/// `source`, which knows a checkpoint by the names on disk, by those of the blueprint.
std::unique_ptr<WeightSource> in_disk_layout(std::unique_ptr<WeightSource> source, const Blueprint& blueprint);

}  // namespace moetune
