// Shuffling without state: the order of the documents is a function of (seed, epoch) and of nothing that happened
// before.
//
//   for (int64_t document : shuffled_order(num_documents, seed, epoch)) ...
#pragma once

#include <cstdint>
#include <vector>

namespace moetune {

/// A permutation of 0 .. count-1: the indices sorted by splitmix64_at(start, index) (parallel/base/splitmix64.h), where
/// start is the number with index `epoch` of the sequence that starts at `seed`. The same on every machine. O(count log
/// count).
std::vector<std::int64_t> shuffled_order(std::int64_t count, std::uint64_t seed, std::int64_t epoch);

}  // namespace moetune
