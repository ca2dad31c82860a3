// A rank's part of a step cut into groups of documents that go through a pipeline one after the other.
//
//   for (const RankBatch& group : batch_groups(batches.local(step, rank, ranks), 4)) ...
#pragma once

#include <vector>

#include "trainer/data/batches.h"

namespace moetune {

/// `count` groups of whole documents, in their order, cut as group_ends says; some may be empty. Each has the totals of
/// the step, and tokens and documents under the numbers that they have there; sequences are cut.
std::vector<RankBatch> batch_groups(const RankBatch& local, int64_t count);

}  // namespace moetune
