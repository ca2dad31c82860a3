// Amounts of data: samples and shares of documents against counts by hand.
#include "trainer/plan/data_amount.h"

#include "parallel/base/error.h"
#include "parallel/base/files.h"
#include "tests/support/catch.h"
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
