#include "trainer/exports/trained_weights.h"

#include "parallel/base/error.h"
#include "parallel/bytes/finite.h"

namespace moetune {
namespace {

constexpr const char* kHead = "lm_head.weight";

/// Of the parameter that holds the first of what `tensor` does; empty: none does.
std::string first_trained_name(const SavedRun& saved, const Blueprint& blueprint, const BaseTensor& tensor) {
  if (tensor.used != nullptr) {
    return tensor.used->held == Held::kBias ? "" : trained_name(saved, blueprint, tensor.used->pieces.front().name);
  }
  const bool tied = blueprint.tied_embeddings && tensor.name == blueprint.naming.prefix + kHead;
  return tied ? trained_name(saved, blueprint, kHead) : "";
}

}  // namespace

bool has_trained(const SavedRun& saved, const Blueprint& blueprint, const BaseTensor& tensor) {
  return !first_trained_name(saved, blueprint, tensor).empty();
}

at::Tensor trained_weight(const SavedRun& saved, const Blueprint& blueprint, const BaseTensor& tensor,
                          at::ScalarType dtype) {
  at::Tensor weight;
  if (tensor.used != nullptr && tensor.used->lies_in_pieces()) {
    weight = at::empty(tensor.shape, dtype);
    for (const DiskPiece& piece : tensor.used->pieces) {
      const at::Tensor master = saved.read(trained_name(saved, blueprint, piece.name));
      piece.place.part(weight[piece.place.expert], piece.shape).copy_(master.to(dtype).view(piece.shape));
    }
  } else {
    weight = saved.read(first_trained_name(saved, blueprint, tensor)).to(dtype).view(tensor.shape);
  }
  // Masters are finite, so this is fp16 that cannot hold them.
  require_finite(weight, str(tensor.name, ": as ", c10::toString(dtype), ", it"));
  return weight;
}

}  // namespace moetune
