#include "trainer/data/batch_groups.h"

#include <algorithm>
#include <numeric>

#include "parallel/base/splitmix64.h"
#include "tests/support/catch.h"

using namespace moetune;

namespace {

/// Documents of these lengths; every number is told apart by its place.
RankBatch batch_of(const std::vector<int64_t>& lengths, bool weighted) {
  RankBatch batch;
  batch.document_begins = {0};
  batch.sequence_begins = {0};
  batch.global.tokens = 1000;
  for (size_t i = 0; i < lengths.size(); ++i) {
    for (int64_t t = 0; t < lengths[i]; ++t) {
      const auto at = static_cast<int32_t>(batch.tokens.size());
      batch.tokens.push_back(at);
      batch.targets.push_back(100 + at);
      if (weighted) batch.target_weights.push_back(0.5F + static_cast<float>(at));
      batch.positions.push_back(static_cast<int32_t>(t));
      batch.global_tokens.push_back(500 + at);
    }
    batch.documents.push_back(static_cast<int64_t>(10 + i));
    batch.document_begins.push_back(batch.document_begins.back() + lengths[i]);
  }
  batch.sequence_begins.push_back(batch.document_begins.back());
  return batch;
}

std::vector<size_t> sizes(const std::vector<RankBatch>& groups) {
  std::vector<size_t> sizes;
  for (const RankBatch& group : groups) sizes.push_back(group.tokens.size());
  return sizes;
}

}  // namespace

TEST_CASE("groups put end to end are the batch, whatever their number", "[batch_groups]") {
  const std::vector<std::vector<int64_t>> batches = {{}, {5}, {3, 3, 3}, {1, 1, 20, 1, 1, 1}, {9, 2, 2, 2, 9, 1, 4}};
  for (const std::vector<int64_t>& lengths : batches) {
    for (const bool weighted : {false, true}) {
      const RankBatch whole = batch_of(lengths, weighted);
      for (const int64_t count : {1, 2, 3, 5, 12}) {
        const std::vector<RankBatch> groups = batch_groups(whole, count);
        REQUIRE(groups.size() == static_cast<size_t>(count));
        RankBatch together;
        together.document_begins = {0};
        for (const RankBatch& group : groups) {
          const auto append = [](auto& to, const auto& from) { to.insert(to.end(), from.begin(), from.end()); };
          const int64_t before = together.document_begins.back();
          append(together.tokens, group.tokens);
          append(together.targets, group.targets);
          append(together.target_weights, group.target_weights);
          append(together.positions, group.positions);
          append(together.global_tokens, group.global_tokens);
          append(together.documents, group.documents);
          REQUIRE(group.document_begins.size() == group.documents.size() + 1);
          CHECK(group.document_begins.front() == 0);
          CHECK(group.document_begins.back() == static_cast<int64_t>(group.tokens.size()));
          for (size_t i = 1; i < group.document_begins.size(); ++i) {
            together.document_begins.push_back(before + group.document_begins[i]);
          }
          CHECK(group.global.tokens == 1000);
        }
        CHECK(together.tokens == whole.tokens);
        CHECK(together.targets == whole.targets);
        CHECK(together.target_weights == whole.target_weights);
        CHECK(together.positions == whole.positions);
        CHECK(together.global_tokens == whole.global_tokens);
        CHECK(together.documents == whole.documents);
        CHECK(together.document_begins == whole.document_begins);
      }
    }
  }
}

TEST_CASE("groups are as even as whole documents allow", "[batch_groups]") {
  CHECK(sizes(batch_groups(batch_of({4, 4, 4, 4}, false), 2)) == std::vector<size_t>{8, 8});
  CHECK(sizes(batch_groups(batch_of({4, 4, 4, 4}, false), 4)) == std::vector<size_t>{4, 4, 4, 4});
  CHECK(sizes(batch_groups(batch_of({1, 1, 1, 9}, false), 2)) == std::vector<size_t>{3, 9});
  CHECK(sizes(batch_groups(batch_of({6}, false), 3)) == std::vector<size_t>{0, 6, 0});
  // No group is longer than its share by more than a document.
  const std::vector<int64_t> lengths = {7, 1, 3, 9, 2, 2, 8, 5, 1, 6};
  const int64_t all = std::accumulate(lengths.begin(), lengths.end(), int64_t{0});
  for (const int64_t count : {2, 3, 4, 7}) {
    for (const size_t size : sizes(batch_groups(batch_of(lengths, false), count))) {
      CHECK(static_cast<int64_t>(size) <= all / count + 9);
    }
  }
}

TEST_CASE("no cut has a shorter longest group", "[batch_groups]") {
  // The middles of both sixes fall into the second of three even parts.
  CHECK(sizes(batch_groups(batch_of({4, 6, 6, 5}, false), 3)) == std::vector<size_t>{10, 6, 5});
  uint64_t state = 7;
  for (int round = 0; round < 60; ++round) {
    std::vector<int64_t> lengths(1 + splitmix64_at(3, ++state) % 9);
    for (int64_t& length : lengths) length = 1 + static_cast<int64_t>(splitmix64_at(5, ++state) % 12);
    const size_t n = lengths.size();
    // best[g][i]: of the first i documents in g groups.
    std::vector<std::vector<int64_t>> best(6, std::vector<int64_t>(n + 1, INT64_MAX));
    best[0][0] = 0;
    for (size_t group = 1; group < best.size(); ++group) {
      for (size_t i = 0; i <= n; ++i) {
        int64_t last = 0;
        for (size_t first = i + 1; first-- > 0; last += first > 0 ? lengths[first - 1] : 0) {
          if (best[group - 1][first] == INT64_MAX) continue;
          best[group][i] = std::min(best[group][i], std::max(best[group - 1][first], last));
        }
      }
      const std::vector<size_t> own = sizes(batch_groups(batch_of(lengths, false), static_cast<int64_t>(group)));
      CHECK(static_cast<int64_t>(*std::max_element(own.begin(), own.end())) == best[group][n]);
    }
  }
}
