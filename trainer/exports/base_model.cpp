#include "trainer/exports/base_model.h"

#include <filesystem>
#include <unordered_map>

#include "moe/families/family.h"
#include "parallel/base/error.h"

namespace moetune {

Blueprint blueprint_of(const Recipe& recipe) {
  const std::filesystem::path folder = recipe.model.path;
  if (!std::filesystem::exists(folder / "config.json")) {
    throw UserError(
        str(folder.string(), ": the run's model.path holds no config.json here",
            folder.is_relative() ? "; the path is relative: run this from the folder where the run was started" : ""));
  }
  return load_blueprint(folder);
}

std::string router_bias_name(const Blueprint& blueprint, int64_t layer) {
  const std::string name = blueprint.correction_bias_name(layer);
  if (!name.empty()) return blueprint.naming.prefix + name;
  throw UserError(str("the router of layer ", layer, " has a saved correction bias, but ", blueprint.model_type,
                      " has none there; is it the model of the run?"));
}

BaseModel::BaseModel(const Recipe& recipe)
    : blueprint_(blueprint_of(recipe)), used_(disk_tensors(blueprint_, recipe.mtp.trains())) {
  if (recipe.model.weights == WeightOrigin::kRandom) {
    drawn_ = true;
    source_ = make_random_weights(blueprint_, static_cast<uint64_t>(recipe.run.seed), at::kCPU);
    list_random();
  } else {
    source_ = open_pretrained(recipe.model.path);
    require_tied_head(*source_, blueprint_);
    list_pretrained(recipe.model.path);
  }
}

void BaseModel::list_pretrained(const std::string& folder) {
  std::unordered_map<std::string, const DiskTensor*> used;
  for (const DiskTensor& tensor : used_) {
    used[tensor.name] = &tensor;
    if (!tensor.may_be_shared && !source_->has(tensor.name)) {
      throw UserError(str(folder, ": there is no tensor ", tensor.name, ", which the run used"));
    }
  }
  for (const StoredTensor& tensor : source_->tensors()) {
    source_->require_weight(tensor.name);
    const auto found = used.find(tensor.name);
    if (found != used.end() && found->second->shape != tensor.shape) {
      throw UserError(moetune::str(tensor.file, ": ", tensor.name, " has shape ", at::IntArrayRef(tensor.shape),
                                   "; config.json asks for ", at::IntArrayRef(found->second->shape),
                                   "; is it the model of the run?"));
    }
    tensors_.push_back({tensor.name, tensor.shape, tensor.dtype, found == used.end() ? nullptr : found->second});
  }
}

void BaseModel::list_random() {
  for (const DiskTensor& tensor : used_) {
    tensors_.push_back({tensor.name, tensor.shape, tensor.shape.size() == 1 ? at::kFloat : at::kBFloat16, &tensor});
  }
}

at::Tensor BaseModel::read(const BaseTensor& tensor) {
  // Weights are drawn under the blueprint's names.
  if (drawn_ && tensor.used != nullptr && tensor.used->lies_in_pieces()) {
    at::Tensor stack = at::empty(tensor.shape, tensor.dtype);
    for (const DiskPiece& piece : tensor.used->pieces) {
      piece.place.part(stack[piece.place.expert], piece.shape).copy_(source_->read(piece.name, piece.shape));
    }
    return stack;
  }
  return source_->read(tensor.name, tensor.shape).contiguous();
}

at::Tensor changed_by_piece(const BaseTensor& tensor, const at::Tensor& stored, at::ScalarType dtype,
                            const std::function<at::Tensor(const DiskPiece& piece, const at::Tensor& stored)>& change) {
  MT_CHECK(tensor.used != nullptr && !tensor.used->pieces.empty(), tensor.name, " holds nothing of the model");
  const std::vector<DiskPiece>& pieces = tensor.used->pieces;
  if (!tensor.used->lies_in_pieces()) return change(pieces[0], stored);
  at::Tensor result = at::empty(stored.sizes(), stored.options().dtype(dtype));
  for (const DiskPiece& piece : pieces) {
    const int64_t row = piece.place.expert;
    piece.place.part(result[row], piece.shape)
        .copy_(change(piece, piece.place.part(stored[row], piece.shape).contiguous()));
  }
  return result;
}

}  // namespace moetune
