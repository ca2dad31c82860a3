// Seeded damage to the bytes of a file: what a disk, a hand or an enemy may have done to it.
//
//   Dice dice(seed);
//   std::string damaged = mutated(valid, "config.json", dice);
//
// JSON is mostly damaged inside its structure, so that it still parses and the damage reaches what reads the values.
#pragma once

#include <cstdint>
#include <string>

#include "parallel/base/splitmix64.h"

namespace moetune {

/// Numbers that follow from the seed.
class Dice {
 public:
  explicit Dice(uint64_t seed) : seed_(seed) {}
  uint64_t next() { return splitmix64_at(seed_, index_++); }
  /// 0 .. count - 1.
  size_t below(size_t count) { return count == 0 ? 0 : static_cast<size_t>(next() % count); }
  bool one_in(size_t count) { return below(count) == 0; }

 private:
  uint64_t seed_;
  uint64_t index_ = 0;
};

/// One to four changes; the ending of `file` says of which kind: .json, .jsonl, .yaml, .safetensors, or plain bytes.
std::string mutated(const std::string& valid, const std::string& file, Dice& dice);

}  // namespace moetune
