// Amounts of data: samples and shares of documents against counts by hand.
#include "trainer/plan/data_amount.h"

#include "parallel/base/error.h"
#include "parallel/base/files.h"
#include "tests/support/catch.h"
#include "tests/support/message_of.h"
#include "tests/support/temporary_folder.h"
#include "trainer/recipe/recipe_load.h"

using namespace moetune;

// Of 100 tokens 40 go into a sequence of 4,096, of 4,096 one: 2,500 and 4 sequences.
TEST_CASE("a length that few of many documents have counts in the sample as often as it is", "[data_amount]") {
  const PackedData packed = DataAmount({{100, 100000}, {4096, 4}}, "t").packed(4096, /*packing=*/true);
  CHECK(packed.longest == 4096);
  CHECK(packed.sequences >= 2504);
  CHECK(packed.sequences <= 2504 + 4);
  CHECK(packed.tokens_a_sequence == Approx((100 * 100000 + 4 * 4096) / 2504.0).epsilon(2e-3));
  // 25,000 lengths of one document each: none is a 20,000th of a document of the sample. A sequence takes one.
  std::vector<LengthCount> lengths;
  for (int64_t length = 30001; length <= 55000; ++length) lengths.push_back({length, 1});
  CHECK(DataAmount(std::move(lengths), "t").packed(60000, /*packing=*/true).sequences == 25000);
}

TEST_CASE("the fullest rank has the longest documents that chance brings together", "[data_amount]") {
  constexpr int64_t kShort = 1000, kLong = 131072;
  const PackedData few = DataAmount({{kShort, 9900}, {kLong, 100}}, "t").packed(kLong, /*packing=*/false);
  CHECK(few.drawn.size() == 10000);
  CHECK(few.fullest_rank(1, 1) == kLong);
  CHECK(few.fullest_rank(8, 8) == kLong);
  // Two of eight with 28 x 0.01^2, in 1,250 steps three times; four with 70 x 0.01^4, in a thousand such runs once.
  const int64_t most = few.fullest_rank(8, 1);
  CHECK((most == 2 * kLong + 6 * kShort || most == 3 * kLong + 5 * kShort));
  // The sample may lack it. The mean of 100,001 is 1000.49.
  const PackedData one = DataAmount({{kShort, 100000}, {50000, 1}}, "t").packed(kLong, /*packing=*/false);
  CHECK(one.fullest_rank(4, 1) == 50000 + 3001);
  CHECK(one.fullest_rank(4, 2) == 50000);
  for (const bool packing : {false, true}) {
    CHECK(DataAmount::of_equal(100, 4096).packed(4096, packing).fullest_rank(16, 4) == 4 * 4096);
  }
  CHECK(DataAmount::of_equal(10, 1000).packed(4096, /*packing=*/true).fullest_rank(1, 1) == 4000);
  // In the order 2, 5, 3, 6, which is that of i x 0.618 without its whole part: 7, 3 and 6.
  CHECK(DataAmount({{2, 1}, {3, 1}, {5, 1}, {6, 1}}, "t").packed(8, /*packing=*/true).fullest_rank(1, 1) == 7);
}

TEST_CASE("what is held out is taken off every length, the nearest number of documents", "[data_amount]") {
  const DataAmount all({{10, 900}, {1000, 100}}, "t"), rest = all.without_held_out(0.5);
  CHECK(rest.documents() == 500);
  CHECK(rest.tokens() == 450 * 10 + 50 * 1000);
  CHECK(rest.source() == "t, 500 held out");
  CHECK(DataAmount::of_equal(10, 7).without_held_out(0.26).documents() == 7);
  CHECK(DataAmount::of_equal(10, 7).without_held_out(0.001).documents() == 9);
  CHECK(DataAmount::of_equal(10, 7).without_held_out(0.999).documents() == 1);
  CHECK(contains(message_of<UserError>([] { DataAmount::of_equal(1, 7).without_held_out(0.1); }),
                 "1 documents of 7 tokens: one document; to hold documents out (data.eval_split: 0.1) takes two"));
}

TEST_CASE("a file's weight holds of its documents together, however many lengths they have", "[data_amount]") {
  const TemporaryFolder folder;
  std::string lines;
  for (int length = 2; length <= 201; ++length) {
    std::string ids = "1";
    for (int i = 1; i < length; ++i) ids += ",1";
    lines += str("{\"input_ids\": [", ids, "], \"labels\": [", ids, "]}\n");
  }
  write_text_atomically(folder / "train.jsonl", lines);
  const auto documents_at = [&](const char* weight) {
    const Recipe recipe =
        parse_recipe(str("run: {dir: r}\nmodel: {path: m}\ndata: {train: [{path: ", folder / "train.jsonl",
                         ", weight: ", weight, "}]}\ntrain: {epochs: 1}\n"),
                     "r.yaml");
    int64_t documents = 0, tokens = 0;
    for (const LengthCount& of : DataAmount::lengths_of(recipe)) {
      documents += of.documents;
      tokens += of.documents * of.length;
    }
    return std::pair{documents, tokens};
  };
  constexpr double kTokens = 200 * (2 + 201) / 2.0;
  for (const auto& [weight, documents] : {std::pair{"0.5", 100}, {"1.9", 380}, {"2", 400}, {"0.01", 2}}) {
    INFO(weight);
    CHECK(documents_at(weight).first == documents);
    CHECK(static_cast<double>(documents_at(weight).second) == Approx(documents / 200.0 * kTokens).epsilon(0.02));
  }
}
