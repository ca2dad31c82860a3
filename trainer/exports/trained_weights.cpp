#include "trainer/exports/trained_weights.h"

#include <algorithm>

#include "parallel/base/error.h"
#include "parallel/bytes/finite.h"

namespace moetune {
namespace {

constexpr const char* kEmbedding = "model.embed_tokens.weight";
constexpr const char* kHead = "lm_head.weight";

/// Of a parameter that holds any of what `tensor` does; empty: none does.
std::string any_trained_name(const SavedRun& saved, const Blueprint& blueprint, const BaseTensor& tensor) {
  if (tensor.used != nullptr) {
    if (tensor.used->held == Held::kBias) return "";
    for (const DiskPiece& piece : tensor.used->pieces) {
      const std::string name = trained_name(saved, blueprint, piece.name);
      if (!name.empty()) return name;
    }
    return "";
  }
  const bool tied = blueprint.tied_embeddings && tensor.name == blueprint.naming.prefix + kHead;
  return tied ? trained_name(saved, blueprint, kHead) : "";
}

}  // namespace

std::string trained_name(const SavedRun& saved, const Blueprint& blueprint, const std::string& piece) {
  std::string name = piece;
  // Where weights train, embedding and head of the MTP module are those of the trunk unless they differed.
  if (!saved.has(name) && name.ends_with(".embed_tokens.weight")) name = kEmbedding;
  if (!saved.has(name) && (name.ends_with(".shared_head.head.weight") || name == kHead)) {
    name = blueprint.tied_embeddings ? kEmbedding : kHead;
  }
  return saved.has(name) ? name : "";
}

bool has_trained(const SavedRun& saved, const Blueprint& blueprint, const BaseTensor& tensor) {
  return !any_trained_name(saved, blueprint, tensor).empty();
}

at::Tensor trained_weight(const SavedRun& saved, const Blueprint& blueprint, const BaseTensor& tensor,
                          at::ScalarType dtype, const std::function<at::Tensor()>& frozen) {
  at::Tensor weight;
  if (tensor.used != nullptr && tensor.used->lies_in_pieces()) {
    const std::vector<DiskPiece>& pieces = tensor.used->pieces;
    const auto trained = [&](const DiskPiece& piece) { return !trained_name(saved, blueprint, piece.name).empty(); };
    weight = std::all_of(pieces.begin(), pieces.end(), trained) ? at::empty(tensor.shape, dtype) : frozen();
    for (const DiskPiece& piece : pieces) {
      if (!trained(piece)) continue;
      const at::Tensor master = saved.read(trained_name(saved, blueprint, piece.name));
      piece.place.part(weight[piece.place.expert], piece.shape).copy_(master.to(dtype).view(piece.shape));
    }
  } else {
    weight = saved.read(any_trained_name(saved, blueprint, tensor)).to(dtype).view(tensor.shape);
  }
  // Masters are finite, so this is fp16 that cannot hold them.
  require_finite(weight, str(tensor.name, ": as ", c10::toString(dtype), ", it"));
  return weight;
}

}  // namespace moetune
