// SplitMix64 (Steele, Lea, Flood 2014, "Fast splittable pseudorandom number generators"), read at any place: the output
// with index i of a generator that starts at s is mix(s + (i + 1) * golden).
//
//   uint64_t third = splitmix64_at(seed, 2);
#pragma once

#include <cstdint>

#include "parallel/base/host_device.h"

namespace moetune {

inline constexpr uint64_t kSplitMixGolden = 0x9e3779b97f4a7c15ull;
inline constexpr uint64_t kSplitMix1 = 0xbf58476d1ce4e5b9ull;
inline constexpr uint64_t kSplitMix2 = 0x94d049bb133111ebull;

/// The finaliser: a bijection of 64-bit integers.
MOETUNE_HOST_DEVICE constexpr uint64_t splitmix64_mix(uint64_t z) {
  z = (z ^ (z >> 30)) * kSplitMix1;
  z = (z ^ (z >> 27)) * kSplitMix2;
  return z ^ (z >> 31);
}

/// The number with the given index (from 0) of the sequence that starts at `start`. For one `start`, different indices
/// give different numbers.
MOETUNE_HOST_DEVICE constexpr uint64_t splitmix64_at(uint64_t start, uint64_t index) {
  return splitmix64_mix(start + (index + 1) * kSplitMixGolden);
}

}  // namespace moetune
