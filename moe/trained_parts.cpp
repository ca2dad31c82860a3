#include "moe/trained_parts.h"

#include <algorithm>

#include "parallel/base/error.h"

namespace moetune {
namespace {

constexpr auto kWords = words_of(ModelPart());

}  // namespace

ModelPart part_of(const TensorSpec& tensor) {
  if (tensor.role == TensorRole::kMtpProjection) return ModelPart::kHead;
  const auto word = std::find(kWords.begin(), kWords.end(), tensor.group);
  MT_CHECK(word != kWords.end(), tensor.name, " is in the group ", tensor.group, ", which is no part");
  return static_cast<ModelPart>(word - kWords.begin());
}

TrainedParts TrainedParts::all() {
  TrainedParts parts;
  for (size_t i = 0; i < kWords.size(); ++i) parts.add(static_cast<ModelPart>(i));
  return parts;
}

std::string to_string(const TrainedParts& parts) {
  const std::string experts = parts.experts().are_all() ? "" : to_string(parts.experts_);
  if (parts.parts_ == TrainedParts::all().parts_) {
    return experts.empty() ? "all parts" : str("all parts (experts: ", experts, ")");
  }
  std::string text;
  for (size_t i = 0; i < kWords.size(); ++i) {
    const auto part = static_cast<ModelPart>(i);
    if (!parts.has(part)) continue;
    text += str(text.empty() ? "" : ", ", kWords[i]);
    if (part == ModelPart::kExperts && !experts.empty()) text += str(" (", experts, ")");
  }
  return text;
}

TrainedParts parts_of(const Blueprint& blueprint, bool with_mtp) {
  TrainedParts parts;
  for (const TensorSpec& tensor : blueprint.tensors(with_mtp)) {
    if (tensor.held != Held::kBias) parts.add(part_of(tensor));
  }
  if (blueprint.tied_embeddings) parts.add(ModelPart::kHead);
  return parts;
}

}  // namespace moetune
