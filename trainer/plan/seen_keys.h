// How many keys a token attends to in documents of given lengths: what attention's products take a token.
//
//   const SeenKeys keys({{.length = 4096, .documents = 10}});
//   keys.of({});                                    // 2048.5, causal
//   keys.of({MaskSpec::Kind::kWindow, 128});        // 126.02: of the first 127 tokens fewer than 128
#pragma once

#include <cstdint>
#include <vector>

#include "moe/blueprint.h"

namespace moetune {

/// Documents of one length.
struct LengthCount {
  int64_t length = 0, documents = 0;
};

class SeenKeys {
 public:
  SeenKeys() = default;  ///< of no documents: none
  explicit SeenKeys(std::vector<LengthCount> documents) : documents_(std::move(documents)) {}

  /// On average over all tokens, the token's own included.
  double of(const MaskSpec& mask) const;

 private:
  std::vector<LengthCount> documents_;
};

}  // namespace moetune
