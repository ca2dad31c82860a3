// The places of a model whose trained tensors and frozen weights come and go together.
//
//   LayerId::embedding() < LayerId::block(0) < ... < LayerId::block(L - 1) < LayerId::mtp(L) < LayerId::turn(L)
//
// The MTP module's block stands behind the last of the trunk's, as in checkpoints. The turn is what lies between the
// ways down and up: final norm, head, and the MTP module's norms and projection.
#pragma once

#include <compare>
#include <cstdint>
#include <ostream>
#include <string>

#include "parallel/base/error.h"

namespace moetune {

class LayerId {
 public:
  LayerId() = default;  ///< the embedding
  static constexpr LayerId embedding() { return {}; }
  static constexpr LayerId block(int64_t index) { return {Kind::kBlock, index}; }
  /// Of a model whose trunk has `num_blocks`.
  static constexpr LayerId mtp(int64_t num_blocks) { return {Kind::kMtp, num_blocks}; }
  static constexpr LayerId turn(int64_t num_blocks) { return {Kind::kTurn, num_blocks + 1}; }

  /// One of the trunk's blocks, or the MTP module's.
  constexpr bool is_block() const { return kind_ == Kind::kBlock || kind_ == Kind::kMtp; }
  constexpr bool is_mtp() const { return kind_ == Kind::kMtp; }
  /// The number that files know it by: of a block that in the checkpoint's names and in Model::blocks, -1 for the
  /// embedding, one behind the MTP module's block for the turn.
  constexpr int64_t number() const { return number_; }

  /// In the order of their numbers.
  friend constexpr bool operator==(const LayerId& a, const LayerId& b) { return a.number_ == b.number_; }
  friend constexpr auto operator<=>(const LayerId& a, const LayerId& b) { return a.number_ <=> b.number_; }

 private:
  enum class Kind { kEmbedding, kBlock, kMtp, kTurn };
  constexpr LayerId(Kind kind, int64_t number) : kind_(kind), number_(number) {}
  friend std::string to_string(const LayerId& layer);

  Kind kind_ = Kind::kEmbedding;
  int64_t number_ = -1;
};

/// "embedding", "layer 7", "MTP", "turn".
inline std::string to_string(const LayerId& layer) {
  switch (layer.kind_) {
    case LayerId::Kind::kEmbedding: return "embedding";
    case LayerId::Kind::kBlock: return "layer " + std::to_string(layer.number_);
    case LayerId::Kind::kMtp: return "MTP";
    case LayerId::Kind::kTurn: return "turn";
  }
  throw InternalError("a layer of no kind");
}
inline std::ostream& operator<<(std::ostream& out, const LayerId& layer) { return out << to_string(layer); }

}  // namespace moetune
