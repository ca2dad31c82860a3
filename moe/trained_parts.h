// The parts of a model that a run trains themselves, by name: the one place that says of a tensor whether its own
// numbers train. What does not is frozen, or has an adapter beside it (lora/adapters/adapter.h).
//
//   const TrainedParts parts({ModelPart::kAttention, ModelPart::kNorms});
//   parts.trains(tensor);                        // a parameter, or held as it was read
//   TrainedParts some({ModelPart::kExperts});
//   some.narrow_experts({ExpertChoice::Kind::kTop, {}, 8});   // of each layer eight experts, the others stay frozen
//
// Biases belong to the part of their map, sinks to attention, the gate of a shared expert to that expert. Of the MTP
// module the block's tensors, its norms, embedding and head belong to the parts of their kind, and its projection to
// the head, which the module is one more of. Routers' correction biases are no part: no gradient moves them.
#pragma once

#include <array>
#include <cstdint>
#include <initializer_list>
#include <string>
#include <string_view>
#include <vector>

#include "lora/adapters/narrowing.h"
#include "moe/blueprint.h"

namespace moetune {

enum class ModelPart { kExperts, kAttention, kDenseMlp, kSharedExpert, kRouter, kNorms, kEmbedding, kHead };
constexpr std::array<std::string_view, 8> words_of(ModelPart) {
  return {"experts", "attention", "dense_mlp", "shared_expert", "router", "norms", "embedding", "head"};
}

/// The part that a tensor belongs to.
ModelPart part_of(const TensorSpec& tensor);

class TrainedParts {
 public:
  TrainedParts() = default;  ///< nothing
  TrainedParts(std::initializer_list<ModelPart> parts) {
    for (const ModelPart part : parts) add(part);
  }
  static TrainedParts all();

  void add(ModelPart part) { parts_ |= uint32_t{1} << static_cast<int>(part); }
  bool has(ModelPart part) const { return (parts_ >> static_cast<int>(part) & 1) != 0; }
  bool none() const { return parts_ == 0; }
  bool operator==(const TrainedParts&) const = default;

  /// Of the part `experts` these alone train.
  void narrow_experts(ExpertChoice choice) { experts_ = std::move(choice); }
  /// Which that are.
  StackExperts experts() const { return experts_.of_stack(); }

  /// Whether the tensor's own numbers train; of a stack those of some experts at least.
  bool trains(const TensorSpec& tensor) const { return !none() && tensor.held != Held::kBias && has(part_of(tensor)); }
  /// Of a tensor that trains, one of a stack: of which experts.
  StackExperts experts_of(const TensorSpec& tensor) const { return tensor.stack > 0 ? experts() : StackExperts(); }
  /// Whether any of its numbers are frozen.
  bool freezes(const TensorSpec& tensor) const { return !trains(tensor) || !experts_of(tensor).are_all(); }

 private:
  friend std::string to_string(const TrainedParts& parts);
  uint32_t parts_ = 0;
  ExpertChoice experts_;
};

/// "attention, norms"; "all parts"; "experts (top 8), router"; empty for none.
std::string to_string(const TrainedParts& parts);

/// The parts that a model has, with_mtp those of its MTP module among them. A tied embedding is a head too.
TrainedParts parts_of(const Blueprint& blueprint, bool with_mtp);

}  // namespace moetune
