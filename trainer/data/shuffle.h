// Shuffling without state: the order of the documents is a function of (seed, epoch) and of nothing that happened
// before.
//
//   for (int64_t document : shuffled_order(num_documents, seed, epoch)) ...
//
// The numbers are those of SplitMix64 (Steele, Lea, Flood 2014, "Fast splittable pseudorandom number generators"),
// which can be read at any place: the output with index i of a generator that starts at s is mix(s + (i + 1) * golden).
#pragma once

#include <cstdint>
#include <vector>

namespace moetune {

/// The number with the given index (from 0) of the SplitMix64 sequence that starts at `start`. For one `start`,
/// different indices give different numbers.
std::uint64_t splitmix64_at(std::uint64_t start, std::uint64_t index);

/// A permutation of 0 .. count-1: the indices sorted by splitmix64_at(start, index), where start is the number with
/// index `epoch` of the sequence that starts at `seed`. The same on every machine. O(count log count).
std::vector<std::int64_t> shuffled_order(std::int64_t count, std::uint64_t seed, std::int64_t epoch);

}  // namespace moetune
