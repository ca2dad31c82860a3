#include "tests/support/catch.h"

#include <algorithm>
#include <cstdlib>
#include <map>
#include <set>
#include <vector>

#include "parallel/base/splitmix64.h"
#include "trainer/data/batch_groups.h"
#include "trainer/data/batches.h"
#include "trainer/data/shuffle.h"

using namespace moetune;

namespace {

// Documents of these lengths in which every token id is unique, and every third label is masked.
Documents make_documents(const std::vector<std::int64_t>& lengths) {
  std::vector<std::int32_t> tokens, labels;
  std::vector<std::int64_t> offsets = {0};
  for (const std::int64_t length : lengths) {
    for (std::int64_t t = 0; t < length; ++t) {
      tokens.push_back(static_cast<std::int32_t>(tokens.size()));
      labels.push_back(t != 1 && tokens.size() % 3 == 0 ? kNotTrained : tokens.back());
    }
    offsets.push_back(static_cast<std::int64_t>(tokens.size()));
  }
  const auto vocab_size = static_cast<std::int64_t>(tokens.size());
  return Documents("test", vocab_size, std::move(tokens), std::move(labels), std::move(offsets), {});
}

std::vector<std::int64_t> some_lengths(std::int64_t count) {
  std::vector<std::int64_t> lengths;
  for (std::int64_t i = 0; i < count; ++i) lengths.push_back(2 + (i * i * 7 + i) % 39);
  return lengths;
}

std::vector<std::int64_t> flat(const Batch& batch) {
  std::vector<std::int64_t> documents;
  for (const auto& sequence : batch.sequences) documents.insert(documents.end(), sequence.begin(), sequence.end());
  return documents;
}

}  // namespace

TEST_CASE("splitmix64_at gives the published sequence", "[shuffle]") {
  // The first outputs of the reference C program splitmix64.c for the seed 1234567.
  CHECK(splitmix64_at(1234567, 0) == 6457827717110365317ULL);
  CHECK(splitmix64_at(1234567, 1) == 3203168211198807973ULL);
  CHECK(splitmix64_at(1234567, 4) == 16408922859458223821ULL);
}

TEST_CASE("a shuffled order is a permutation that seed and epoch decide", "[shuffle]") {
  auto order = shuffled_order(1000, 17, 3);
  CHECK(order == shuffled_order(1000, 17, 3));
  CHECK(order != shuffled_order(1000, 17, 4));
  CHECK(order != shuffled_order(1000, 18, 3));
  int stay = 0, rising = 0;
  for (size_t i = 0; i < order.size(); ++i) stay += order[i] == static_cast<std::int64_t>(i);
  for (size_t i = 1; i < order.size(); ++i) rising += order[i] > order[i - 1];
  CHECK(stay < 8);                     // expected 1
  CHECK(std::abs(rising - 500) < 60);  // expected 499.5, standard deviation 9
  std::sort(order.begin(), order.end());
  for (size_t i = 0; i < order.size(); ++i) REQUIRE(order[i] == static_cast<std::int64_t>(i));
}

TEST_CASE("an epoch holds every document once, in sequences that fit", "[batches]") {
  const auto lengths = some_lengths(500);
  const Documents documents = make_documents(lengths);
  for (const bool shuffle : {true, false}) {
    Batches batches(documents, {.seed = 5, .batch = 1, .max_tokens = 64, .packing = true, .shuffle = shuffle});
    const std::int64_t num_steps = batches.steps_of_epochs(1);
    std::vector<std::int64_t> seen;
    for (std::int64_t step = 0; step < num_steps; ++step) {
      const Batch batch = batches.at(step);
      REQUIRE(batch.sequences.size() == 1);
      CHECK(batch.totals.tokens <= 64);
      const auto in_step = flat(batch);
      std::int64_t tokens = 0;
      for (const std::int64_t i : in_step) tokens += lengths[i];
      CHECK(batch.totals.tokens == tokens);
      seen.insert(seen.end(), in_step.begin(), in_step.end());
    }
    CHECK(std::is_sorted(seen.begin(), seen.end()) == !shuffle);  // without shuffling the file's order, exactly
    std::sort(seen.begin(), seen.end());
    REQUIRE(seen.size() == 500);
    for (std::int64_t i = 0; i < 500; ++i) CHECK(seen[i] == i);
    // Shuffled, best fit leaves little room: within 5 % of the fewest sequences that could hold the tokens.
    const std::int64_t fewest = (documents.num_tokens() + 63) / 64;
    if (shuffle) CHECK(static_cast<double>(num_steps) < 1.05 * static_cast<double>(fewest));
  }
}

TEST_CASE("packing by hand", "[batches]") {
  const std::vector<std::int64_t> lengths = {6, 5, 3, 4, 2, 9, 2};
  // 6 3 | 5 4 | 2 2 | 9: the 3 takes the room of 4 rather than that of 5
  CHECK(pack(lengths, 10, 64) == std::vector<std::int64_t>{0, 1, 0, 1, 2, 3, 2});
  // 6 5 | 3 4 2 2 | 9: the last 2 finds room of 2 twice
  CHECK(pack(lengths, 11, 64) == std::vector<std::int64_t>{0, 0, 1, 1, 1, 2, 1});
  // of equals the oldest
  CHECK(pack(std::vector<std::int64_t>{8, 8, 2, 2}, 10, 64) == std::vector<std::int64_t>{0, 1, 0, 1});
  CHECK(pack(std::vector<std::int64_t>{8, 9, 9, 2}, 10, 3) == std::vector<std::int64_t>{0, 1, 2, 0});
  // 0 is closed by then
  CHECK(pack(std::vector<std::int64_t>{8, 9, 9, 2}, 10, 2) == std::vector<std::int64_t>{0, 1, 2, 3});

  const Documents documents = make_documents(lengths);
  Batches in_order(documents, {.batch = 7, .max_tokens = 10, .packing = true, .shuffle = false, .epochs = 1});
  CHECK(in_order.at(0).sequences == std::vector<std::vector<std::int64_t>>{{0}, {1, 2}, {3, 4}, {5}, {6}});
  Batches single(documents, {.batch = 7, .max_tokens = 10, .packing = false, .shuffle = false});
  CHECK(single.at(0).sequences == std::vector<std::vector<std::int64_t>>{{0}, {1}, {2}, {3}, {4}, {5}, {6}});
}

TEST_CASE("every step has batch sequences, chained over epochs", "[batches]") {
  const Documents documents = make_documents(some_lengths(23));
  Batches batches(documents, {.seed = 9, .batch = 5, .max_tokens = 64, .packing = false});
  CHECK(batches.steps_of_epochs(1) == 5);   // ceil(23 / 5)
  CHECK(batches.steps_of_epochs(2) == 10);  // ceil(46 / 5)
  CHECK(batches.steps_of_epochs(5) == 23);
  std::map<std::int64_t, int> times;
  for (std::int64_t step = 0; step < 23; ++step) {
    const Batch batch = batches.at(step);
    REQUIRE(batch.sequences.size() == 5);
    for (const std::int64_t i : flat(batch)) ++times[i];
  }
  REQUIRE(times.size() == 23);
  for (const auto& [document, count] : times) CHECK(count == 5);

  // A step is the same whatever was asked before: (seed, step) alone decides.
  Batches fresh(documents, {.seed = 9, .batch = 5, .max_tokens = 64, .packing = false});
  const Batch late = fresh.at(17), early = fresh.at(4);
  CHECK(late.sequences == batches.at(17).sequences);
  CHECK(early.sequences == batches.at(4).sequences);
  Batches other_seed(documents, {.seed = 10, .batch = 5, .max_tokens = 64, .packing = false});
  CHECK(other_seed.at(4).sequences != early.sequences);

  // A batch larger than an epoch takes several epochs.
  Batches large(documents, {.seed = 9, .batch = 100, .max_tokens = 64, .packing = false});
  const Batch batch = large.at(0);
  CHECK(batch.totals.sequences == 100);
  for (int step = 0; step < 20; ++step) {
    const Batch part = batches.at(step);
    for (size_t i = 0; i < 5; ++i) CHECK(part.sequences[i] == batch.sequences[step * 5 + i]);
  }
}

TEST_CASE("a stream of one epoch takes every document once", "[batches]") {
  const Documents documents = make_documents(some_lengths(23));
  Batches batches(documents, {.batch = 5, .max_tokens = 64, .packing = false, .shuffle = false, .epochs = 1});
  REQUIRE(batches.steps_of_epochs(1) == 5);
  CHECK(batches.at(4).sequences == std::vector<std::vector<std::int64_t>>{{20}, {21}, {22}});
  CHECK(batches.at(4).totals.sequences == 3);
  CHECK(batches.at(5).sequences.empty());
  CHECK(batches.local(5, 0, 2).tokens.empty());
  CHECK(batches.fullest_step(9, 2).step < 5);
}

TEST_CASE("epochs are exact: each document so many times, and the last step holds what is left", "[batches]") {
  struct Case {
    std::int64_t documents, batch, epochs;
    std::vector<size_t> sequences;  // of each step
  };
  // Five documents, batch 4, two epochs: ten documents, the last step holds two.
  for (const Case& c :
       std::vector<Case>{{5, 4, 2, {4, 4, 2}}, {5, 5, 2, {5, 5}}, {1, 64, 3, {3}}, {3, 1, 1, {1, 1, 1}}}) {
    INFO(c.documents << " documents, batch " << c.batch << ", epochs " << c.epochs);
    const Documents documents = make_documents(some_lengths(c.documents));
    const BatchOptions options = {.seed = 4, .batch = c.batch, .max_tokens = 64, .packing = false, .epochs = c.epochs};
    Batches batches(documents, options);
    REQUIRE(batches.steps_of_epochs(c.epochs) == static_cast<std::int64_t>(c.sequences.size()));
    std::map<std::int64_t, std::int64_t> times;
    for (size_t step = 0; step < c.sequences.size(); ++step) {
      const Batch batch = batches.at(static_cast<std::int64_t>(step));
      CHECK(batch.sequences.size() == c.sequences[step]);
      for (const std::int64_t i : flat(batch)) ++times[i];
      // A resumed run asks for a late step first.
      Batches fresh(documents, options);
      CHECK(fresh.at(static_cast<std::int64_t>(step)).sequences == batch.sequences);
    }
    for (const auto& [document, count] : times) CHECK(count == c.epochs);
    CHECK(static_cast<std::int64_t>(times.size()) == c.documents);
    CHECK(batches.at(static_cast<std::int64_t>(c.sequences.size())).sequences.empty());
  }
}

namespace {

// Parts of these sizes and weights, every document of two tokens.
Documents weighted_documents(const std::vector<std::pair<std::int64_t, double>>& parts) {
  std::vector<Documents> all;
  std::vector<double> weights;
  for (const auto& [size, weight] : parts) {
    all.push_back(make_documents(std::vector<std::int64_t>(static_cast<size_t>(size), 2)));
    weights.push_back(weight);
  }
  return Documents::joined("data.train", std::move(all), weights);
}

// How often each document stands in one epoch.
std::map<std::int64_t, int> times_in_epoch(const Documents& documents, std::int64_t epoch, bool shuffle = true) {
  Batches batches(documents, {.seed = 3, .batch = 1, .max_tokens = 2, .packing = false, .shuffle = shuffle});
  std::int64_t first = 0;
  for (std::int64_t e = 0; e < epoch; ++e) first += batches.sequences_of_epoch(e);
  std::map<std::int64_t, int> times;
  for (std::int64_t step = first; step < first + batches.sequences_of_epoch(epoch); ++step) {
    for (const std::int64_t i : flat(batches.at(step))) ++times[i];
  }
  return times;
}

}  // namespace

TEST_CASE("an epoch takes a document as often as its weight says", "[batches]") {
  // 0 .. 9 once, 10 .. 13 two and a half times, 14 .. 21 a quarter of them.
  const Documents documents = weighted_documents({{10, 1.0}, {4, 2.5}, {8, 0.25}});
  std::map<std::int64_t, int> before;
  bool anew = false;
  for (std::int64_t epoch = 0; epoch < 4; ++epoch) {
    const auto times = times_in_epoch(documents, epoch);
    int once = 0, more = 0, few = 0, third = 0;
    for (const auto& [i, count] : times) {
      if (i < 10) once += count == 1;
      if (i >= 10 && i < 14) {
        CHECK((count == 2 || count == 3));
        more += count;
        third += count == 3;
      }
      if (i >= 14) few += count;
    }
    CHECK(once == 10);
    CHECK(more == 10);  // 4 * 2.5
    CHECK(third == 2);
    CHECK(few == 2);  // 8 * 0.25
    CHECK(times == times_in_epoch(documents, epoch));
    anew = anew || (epoch > 0 && times != before);
    before = times;
  }
  CHECK(anew);
}

TEST_CASE("parts of documents add up over epochs", "[batches]") {
  // A third of one document: it stands in two of six epochs; a weight of 1.5 of it: nine times.
  int seldom = 0, often = 0;
  const Documents documents = weighted_documents({{1, 1.0}, {1, 1.0 / 3.0}, {1, 1.5}});
  for (std::int64_t epoch = 0; epoch < 6; ++epoch) {
    auto times = times_in_epoch(documents, epoch);
    CHECK(times[0] == 1);
    seldom += times[1];
    often += times[2];
  }
  CHECK(seldom == 2);
  CHECK(often == 9);
  // An epoch without a document is passed over.
  const Documents rare = weighted_documents({{1, 0.25}});
  Batches batches(rare, {.seed = 1, .batch = 2, .max_tokens = 2, .packing = false});
  CHECK(batches.at(0).sequences == std::vector<std::vector<std::int64_t>>{{0}, {0}});
  Batches none(rare, {.seed = 1, .batch = 2, .max_tokens = 2, .packing = false, .epochs = 1});
  CHECK(none.steps_of_epochs(1) == 0);
  CHECK(none.at(0).sequences.empty());
}

TEST_CASE("without shuffling a weighted part is passed as often as it stands in the epoch", "[batches]") {
  const Documents documents = weighted_documents({{2, 2.0}, {2, 1.0}});
  Batches batches(documents, {.batch = 6, .max_tokens = 2, .packing = false, .shuffle = false, .epochs = 1});
  CHECK(batches.at(0).sequences == std::vector<std::vector<std::int64_t>>{{0}, {1}, {0}, {1}, {2}, {3}});
}

TEST_CASE("weights of tokens are summed, and what weighs nothing is no target", "[batches]") {
  const Documents documents("d", 100, {1, 2, 3, 4, 5, 6, 7}, {-100, 2, 3, 4, -100, 6, 7}, {0, 4, 7}, {},
                            {9.0F, 0.5F, 0.0F, 2.0F, 9.0F, 0.25F, 1.0F});
  Batches batches(documents, {.batch = 2, .max_tokens = 4, .packing = false, .shuffle = false, .epochs = 1});
  const RankBatch mine = batches.local(0, 0, 1);
  CHECK(mine.global.targets == 4);
  CHECK(mine.global.mtp_targets == 2);
  CHECK(mine.global.divisor() == 3.75);
  CHECK(mine.global.mtp_divisor() == 3.0);
  CHECK(mine.targets == std::vector<std::int32_t>{2, -100, 4, -100, 6, 7, -100});
  CHECK(mine.target_weights == std::vector<float>{0.5F, 0.0F, 2.0F, 0.0F, 0.25F, 1.0F, 0.0F});
  // Without weights nothing is carried along.
  const Documents plain = make_documents({4, 3});
  Batches ones(plain, {.batch = 2, .max_tokens = 4, .packing = false, .epochs = 1});
  CHECK(ones.local(0, 0, 1).target_weights.empty());
  CHECK(ones.at(0).totals.divisor() == static_cast<double>(ones.at(0).totals.targets));
}

TEST_CASE("the ranks' parts make up the global batch, whatever their number", "[batches]") {
  const auto lengths = some_lengths(60);
  const Documents documents = make_documents(lengths);
  Batches batches(documents, {.seed = 3, .batch = 7, .max_tokens = 80});
  for (const std::int64_t step : {0, 1, 5, 11}) {
    const Batch batch = batches.at(step);
    // The global batch, written down directly.
    std::vector<std::int32_t> tokens, targets;
    std::int64_t num_mtp_targets = 0;
    for (const std::int64_t i : flat(batch)) {
      const auto [ids, labels, weights] = documents.doc(i);
      for (size_t t = 0; t < ids.size(); ++t) {
        tokens.push_back(ids[t]);
        targets.push_back(t + 1 < ids.size() ? labels[t + 1] : -100);
        num_mtp_targets += t + 2 < ids.size() && labels[t + 2] != -100;
      }
    }
    for (const std::int64_t num_ranks : {1, 2, 3, 4, 9}) {
      std::set<std::int64_t> seen;
      std::int64_t num_documents = 0, num_sequences = 0, most = 0;
      for (std::int64_t rank = 0; rank < num_ranks; ++rank) {
        const RankBatch mine = batches.local(step, rank, num_ranks);
        const auto num_tokens = static_cast<std::int64_t>(mine.tokens.size());
        most = std::max(most, num_tokens);
        REQUIRE(mine.targets.size() == mine.tokens.size());
        REQUIRE(mine.positions.size() == mine.tokens.size());
        REQUIRE(mine.global_tokens.size() == mine.tokens.size());
        REQUIRE(mine.document_begins.back() == num_tokens);
        REQUIRE(mine.sequence_begins.back() == num_tokens);
        for (std::int64_t t = 0; t < num_tokens; ++t) {
          const std::int64_t global = mine.global_tokens[t];
          REQUIRE(seen.insert(global).second);
          REQUIRE(global < static_cast<std::int64_t>(tokens.size()));
          CHECK(mine.tokens[t] == tokens[global]);
          CHECK(mine.targets[t] == targets[global]);
        }
        for (size_t d = 0; d + 1 < mine.document_begins.size(); ++d) {
          const std::int64_t begin = mine.document_begins[d], end = mine.document_begins[d + 1];
          for (std::int64_t t = begin; t < end; ++t) CHECK(mine.positions[t] == t - begin);
          CHECK(mine.targets[end - 1] == -100);
          const std::int32_t first = mine.tokens[begin];  // unique ids: the next document would not continue them
          CHECK(mine.tokens[end - 1] == first + (end - begin) - 1);
        }
        for (const std::int64_t begin : mine.sequence_begins) {
          CHECK(std::count(mine.document_begins.begin(), mine.document_begins.end(), begin) == 1);
        }
        num_documents += static_cast<std::int64_t>(mine.document_begins.size()) - 1;
        num_sequences += static_cast<std::int64_t>(mine.sequence_begins.size()) - 1;
        CHECK(mine.global.sequences == 7);
        CHECK(mine.global.tokens == static_cast<std::int64_t>(tokens.size()));
        CHECK(mine.global.targets == std::count_if(targets.begin(), targets.end(), [](int t) { return t != -100; }));
        CHECK(mine.global.mtp_targets == num_mtp_targets);
        CHECK(mine.global.documents == static_cast<std::int64_t>(flat(batch).size()));
      }
      CHECK(seen.size() == tokens.size());
      CHECK(num_documents == batch.totals.documents);
      CHECK(num_sequences == 7);
      CHECK(most <= batches.fullest_step(12, num_ranks).tokens);
    }
  }
}

TEST_CASE("sequences are dealt longest first to the least loaded rank", "[batches]") {
  const std::vector<std::int64_t> tokens = {3, 9, 3, 5, 7};
  // 9 to rank 0, 7 to rank 1, 5 to rank 1 (7 < 9), 3 (index 0) to rank 0 (9 < 12), 3 (index 2) to rank 0 (12 = 12)
  CHECK(deal_out(tokens, 2) == std::vector<std::int64_t>{0, 0, 0, 1, 1});
  CHECK(deal_out(tokens, 1) == std::vector<std::int64_t>{0, 0, 0, 0, 0});
  CHECK(deal_out(std::vector<std::int64_t>{4, 4}, 3) == std::vector<std::int64_t>{0, 1});
}

TEST_CASE("the fullest step is found", "[batches]") {
  const Documents documents = make_documents({4, 4, 4, 4, 9, 4, 4, 9, 4, 4});
  Batches batches(documents, {.batch = 2, .max_tokens = 10, .packing = false, .shuffle = false});
  const auto on_one = batches.fullest_step(5, 1);
  CHECK(on_one.step == 2);
  CHECK(on_one.tokens == 13);
  const auto on_two = batches.fullest_step(5, 2);
  CHECK(on_two.step == 2);
  CHECK(on_two.tokens == 9);
  CHECK(batches.fullest_step(2, 2).tokens == 4);
}

TEST_CASE("the fullest group of any step is found", "[batches]") {
  const Documents documents = make_documents({4, 4, 4, 4, 9, 4, 4, 9, 4, 4, 2, 6, 5, 2, 3, 7});
  for (const bool packing : {false, true}) {
    Batches batches(documents, {.seed = 3, .batch = 4, .max_tokens = 10, .packing = packing});
    for (const std::int64_t ranks : {1, 2, 3}) {
      for (const std::int64_t groups : {1, 2, 3, 7}) {
        std::int64_t most = 0;
        for (std::int64_t step = 0; step < 9; ++step) {
          for (std::int64_t rank = 0; rank < ranks; ++rank) {
            for (const RankBatch& group : batch_groups(batches.local(step, rank, ranks), groups)) {
              most = std::max(most, static_cast<std::int64_t>(group.tokens.size()));
            }
          }
        }
        CHECK(batches.fullest_step(9, ranks, groups).group_tokens == most);
        CHECK(batches.fullest_step(9, ranks, groups).tokens == batches.fullest_step(9, ranks).tokens);
      }
    }
  }
}
