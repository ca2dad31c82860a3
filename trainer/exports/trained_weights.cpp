#include "trainer/exports/trained_weights.h"

#include "parallel/base/error.h"
#include "parallel/bytes/finite.h"

namespace moetune {
namespace {

/// Embedding and head of the MTP module are those of the trunk, which alone are saved.
std::string saved_name_of(const SavedRun& saved, const std::string& name, const BaseTensor& tensor) {
  if (!tensor.used->may_be_shared || saved.has(name)) return name;
  return name.ends_with(".embed_tokens.weight") ? "model.embed_tokens.weight" : "lm_head.weight";
}

}  // namespace

at::Tensor trained_weight(const SavedRun& saved, const BaseTensor& tensor, at::ScalarType dtype) {
  MT_CHECK(tensor.used != nullptr && !tensor.used->pieces.empty(), tensor.name, " holds nothing of the model");
  const auto read = [&](const DiskPiece& piece) {
    return saved.read(saved_name_of(saved, piece.name, tensor)).to(dtype).view(piece.shape);
  };
  at::Tensor weight;
  if (tensor.used->lies_in_pieces()) {
    weight = at::empty(tensor.shape, dtype);
    for (const DiskPiece& piece : tensor.used->pieces) {
      piece.place.part(weight[piece.place.expert], piece.shape).copy_(read(piece));
    }
  } else {
    weight = read(tensor.used->pieces[0]);
  }
  // Masters are finite, so this is fp16 that cannot hold them.
  require_finite(weight, str(tensor.name, ": as ", c10::toString(dtype), ", it"));
  return weight;
}

}  // namespace moetune
