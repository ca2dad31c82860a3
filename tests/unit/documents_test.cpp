#include "tests/support/catch.h"

#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <fstream>
#include <string>
#include <vector>

#include "parallel/base/error.h"
#include "parallel/bytes/safetensors.h"
#include "tests/support/message_of.h"
#include "tests/support/temporary_folder.h"
#include "trainer/data/documents.h"

using namespace moetune;

namespace {

// A file with this content, gone at the end of the test.
struct TemporaryFile {
  TemporaryFolder folder;
  std::string path = folder / "documents";
  explicit TemporaryFile(const std::string& text = "") { std::ofstream(path, std::ios::binary) << text; }
};

// What reading these lines is refused with; empty when it is not.
std::string refusal_of(const std::string& jsonl) {
  const TemporaryFile file(jsonl);
  try {
    Documents::from_jsonl(file.path, 100);
  } catch (const UserError& error) {
    return error.what();
  }
  return "";
}

template <typename Range>
std::vector<std::int32_t> values(const Range& range) {
  return {range.begin(), range.end()};
}

using Ids = std::vector<std::int32_t>;

}  // namespace

TEST_CASE("tokenised JSON lines become documents", "[documents]") {
  const TemporaryFile file(
      "{\"input_ids\": [5, 6, 7], \"labels\": [-100, 6, 7]}\n"
      "\n"
      "  {\"labels\":[8,-100,9,-100],\"input_ids\":[8,0,9,99]}\r\n"
      "{\"input_ids\": [1, 2], \"labels\": [-100, 2]}");  // no newline at the end
  const Documents documents = Documents::from_jsonl(file.path, 100);
  REQUIRE(documents.size() == 3);
  CHECK(documents.num_tokens() == 9);
  CHECK(values(documents.doc(0).tokens) == Ids{5, 6, 7});
  CHECK(values(documents.doc(0).labels) == Ids{-100, 6, 7});
  CHECK(values(documents.doc(1).tokens) == Ids{8, 0, 9, 99});
  CHECK(values(documents.doc(1).labels) == Ids{8, -100, 9, -100});
  CHECK(documents.num_targets(0) == 2);
  CHECK(documents.num_mtp_targets(0) == 1);
  CHECK(documents.num_targets(1) == 1);  // the label 8 of position 0 is predicted by nothing
  CHECK(documents.num_mtp_targets(1) == 1);
  CHECK(documents.num_mtp_targets(2) == 0);
  CHECK(documents.name_of(1) == "document 1 (line 3)");
  CHECK(documents.name_of(2) == "document 2 (line 4)");
}

TEST_CASE("masks and positions that say nothing new may stand in a tokenised line", "[documents]") {
  const auto with = [](const std::string& more) {
    return "{\"input_ids\": [5, 6, 7], \"labels\": [-100, 6, 7], " + more + "}\n";
  };
  CHECK(refusal_of(with("\"attention_mask\": [1, 1, 1]")) == "");
  CHECK(refusal_of(with("\"position_ids\": [0, 1, 2], \"attention_mask\": [1, 1, 1]")) == "");
  CHECK(contains(refusal_of(with("\"attention_mask\": [1, 1, 0]")), "an attention_mask that is not 1"));
  CHECK(contains(refusal_of(with("\"attention_mask\": [1, 1]")), "an attention_mask that is not 1"));
  CHECK(contains(refusal_of(with("\"position_ids\": [0, 1, 0]")), "position_ids that do not count from 0"));
  CHECK(contains(refusal_of(with("\"position_ids\": [0, 1, 2, 3]")), "position_ids that do not count from 0"));
  CHECK(contains(refusal_of(with("\"attention_mask\": 1")), "the number 1 in the place of a list"));
  CHECK(contains(refusal_of(with("\"token_type_ids\": [0, 0, 0]")), "the key \"token_type_ids\""));
}

TEST_CASE("keys of a tokenised line that hold nothing are as if they were not there", "[documents]") {
  const auto with = [](const std::string& more) {
    return refusal_of("{\"input_ids\": [5, 6, 7], " + more + ", \"labels\": [-100, 6, 7]}\n");
  };
  for (const char* nothing : {"null", "\"\"", "[]", "{}", "[ ]"}) {
    INFO(nothing);
    for (const char* key : {"token_type_ids", "source", "id", "weight", ""}) {
      CHECK(with(str("\"", key, "\": ", nothing)) == "");
    }
  }
  for (const char* nothing : {"null", "[]"}) {
    CHECK(with(str("\"attention_mask\": ", nothing, ", \"position_ids\": ", nothing)) == "");
    CHECK(contains(refusal_of(str("{\"input_ids\": [1], \"labels\": ", nothing, "}\n")), "document"));
  }
  CHECK(with("\"id\": {\"a\": [1]}") == "");
  for (const char* something : {"0", "false", "0.5", "\" \"", "[0]", "[[]]", "[null]", "{\"a\": null}"}) {
    CHECK(contains(with(str("\"weight\": ", something)), "the key \"weight\""));
  }
  CHECK(contains(with("\"attention_mask\": null, \"attention_mask\": [0]"), "the key \"attention_mask\" twice"));
  CHECK(contains(with("\"note\": null, \"note\": null"), "the key \"note\" twice"));
}

TEST_CASE("labels that are shifted already are refused", "[documents]") {
  const auto labels = [](const std::string& list) {
    return refusal_of("{\"input_ids\": [1, 2, 3, 4], \"labels\": " + list + "}\n");
  };
  for (const char* shifted : {"[2, 3, 4, -100]", "[-100, 3, 4, -100]", "[2, 3, 4, 9]"}) {
    CHECK(contains(labels(shifted), "labels that are shifted"));
  }
  for (const char* plain : {"[1, 2, 3, 4]", "[-100, -100, 4, -100]", "[-100, 3, 3, 4]"}) CHECK(labels(plain) == "");
  CHECK(refusal_of("{\"input_ids\": [7, 7, 7], \"labels\": [7, 7, -100]}\n") == "");
}

TEST_CASE("bytes around a tokenised line", "[documents]") {
  const std::string line = "{\"input_ids\": [1, 2], \"labels\": [1, 2]}";
  const std::string at_nul = str("no valid JSON at byte ", line.size() + 1);
  CHECK(refusal_of("\xef\xbb\xbf" + line + "\r\n\v\f\n" + line) == "");
  CHECK(contains(refusal_of(line + "\n\xef\xbb\xbf" + line + "\n"), "no valid JSON at byte 1"));
  CHECK(contains(refusal_of(line + std::string(1, '\0') + "\n"), at_nul));
  CHECK(contains(refusal_of(line + std::string(1, '\0') + line + "\n"), at_nul));
}

TEST_CASE("ignored keys of a tokenised line may hold anything", "[documents]") {
  const TemporaryFile file(
      "{\"id\": {\"labels\": [[1], {}], \"x\": null}, \"input_ids\": [5, 6], \"note\": [1, \"a\", [2.5]], "
      "\"labels\": [-100, 6]}\n");
  const Documents documents = Documents::from_jsonl(file.path, 100, {"id", "note", "input_ids"});
  CHECK(values(documents.doc(0).tokens) == Ids{5, 6});
  CHECK(values(documents.doc(0).labels) == Ids{-100, 6});
  CHECK(contains(message_of<UserError>([&] { Documents::from_jsonl(file.path, 100, {"id"}); }), "the key \"note\""));
}

TEST_CASE("a tokenised file is recognised by its first line", "[documents]") {
  CHECK(Documents::is_tokenised_jsonl(TemporaryFile("\n{\"input_ids\": [], \"labels\": []}\n").path));
  CHECK_FALSE(Documents::is_tokenised_jsonl(TemporaryFile("{\"text\": \"input_ids\"}\n").path));
  CHECK_FALSE(Documents::is_tokenised_jsonl(TemporaryFile("{\"input_ids\": [], \"messages\": []}\n").path));
  CHECK_FALSE(Documents::is_tokenised_jsonl(TemporaryFile("{\"input_ids\": [], \"conversations\": 1}\n").path));
  CHECK_FALSE(Documents::is_tokenised_jsonl(TemporaryFile("[\"input_ids\"]\n").path));
  CHECK_FALSE(Documents::is_tokenised_jsonl(TemporaryFile("").path));
}

TEST_CASE("every mistake of a tokenised file is counted and placed in one message", "[documents]") {
  const std::string good = "{\"input_ids\": [1, 2], \"labels\": [-100, 2]}\n";
  const std::string message = refusal_of(good +                                                   //
                                         "{\"input_ids\": [1, 2], \"labels\": [2]}\n" +           // 2 lengths
                                         "{\"input_ids\": [1, 2], \"labels\": [-100, -100]}\n" +  // 3 masked
                                         "{\"input_ids\": [1, 2\n" +                              // 4 no JSON
                                         "{\"input_ids\": [1, 100], \"labels\": [-100, 1]}\n" +   // 5 vocabulary
                                         "{\"input_ids\": [1, 2], \"labels\": [1, -100]}\n" +     // 6 masked: label 0
                                         good +                                                   //
                                         "{\"input_ids\": [1], \"labels\": [1], \"no\": 3}\n");   // 8 unknown key
  CHECK(contains(message, "of 8 lines"));
  CHECK(contains(message, "2 lines are not {\"input_ids\": [integers], \"labels\": [integers]}: line 4, 8"));
  CHECK(contains(
      message,
      "1 line have input_ids and labels of different lengths: line 2 (the first has 2 input_ids and 1 labels)"));
  CHECK(contains(message, "no target in 2 of 5 documents: document 1 (line 3), document 3 (line 6)"));
  CHECK(contains(
      message,
      "ids outside the vocabulary of the model in 1 of 5 documents: document 2 (line 5). Allowed are 0 to 99"));
}

TEST_CASE("what is not the tokenised format is refused with the reason", "[documents]") {
  const auto ids = [](const std::string& list) { return "{\"input_ids\": " + list + ", \"labels\": [-100, 2]}\n"; };
  CHECK(refusal_of(ids("[1, 2]")) == "");
  CHECK(contains(refusal_of(ids("[1, 2.0]")), "the number 2.0"));
  CHECK(contains(refusal_of(ids("[1, \"a\\u001b\"]")), "the text \"a\\u001b\""));
  CHECK(contains(refusal_of(ids("[1, [2]]")), "a list in the place"));
  CHECK(contains(refusal_of(ids("[1, {\"a\": 2}]")), "an object inside"));
  CHECK(contains(refusal_of(ids("[1, null]")), "null"));
  CHECK(contains(refusal_of(ids("2")), "the number 2 in the place of a list"));
  CHECK(contains(refusal_of("{\"input_ids\": [1, 2]}\n"), "a missing list"));
  CHECK(contains(refusal_of("{\"labels\": [1, 2], \"labels\": [1, 2]}\n"), "the key \"labels\" twice"));
  CHECK(contains(refusal_of("[1, 2]\n"), "a list in the place"));
  CHECK(contains(refusal_of("{\"a\xff\": 1}\n"), "no valid JSON at byte"));
  CHECK(contains(refusal_of(ids("[1, -1]")), "ids outside the vocabulary"));
  CHECK(contains(refusal_of(ids("[1, 4294967297]")), "ids outside the vocabulary"));
  CHECK(contains(refusal_of(ids("[1, 18446744073709551617]")), "the number 18446744073709551617"));
  CHECK(contains(refusal_of("{\"input_ids\": [1, 2], \"labels\": [-100, -99]}\n"), "ids outside the vocabulary"));
  CHECK(contains(refusal_of("{\"input_ids\": [], \"labels\": []}\n"), "no target"));
  CHECK(contains(refusal_of(""), "the file is empty"));
  CHECK(contains(refusal_of("\n \n"), "the file is empty"));
  CHECK(contains(refusal_of(std::string((size_t{64} << 20) + 1, ' ') + "\n" + ids("[1, 2]")),
                 "1 line are longer than 64 MiB: line 1"));
  CHECK_THROWS_AS(Documents::from_jsonl("/nonexistent/a.jsonl", 100), UserError);
  CHECK_THROWS_AS(Documents::from_jsonl("/tmp", 100), UserError);
}

TEST_CASE("truncation keeps the start and refuses to lose every target", "[documents]") {
  // the label 5 is no target
  Documents documents("d", 100, {1, 2, 3, 4, 5, 6, 7, 8, 9}, {-100, 2, 3, 4, 5, -100, -100, 8, 9}, {0, 4, 9}, {});
  CHECK(documents.truncate(5) == 0);
  CHECK(contains(message_of<UserError>([&] { documents.truncate(3); }),
                 "max_tokens 3 removes every target of 1 of 2 documents: document 1."));
  CHECK(documents.num_tokens() == 9);  // nothing was cut
  CHECK(documents.truncate(4) == 1);
  CHECK(documents.num_tokens() == 8);
  CHECK(values(documents.doc(1).tokens) == Ids{5, 6, 7, 8});
  CHECK(documents.num_targets(1) == 1);
  CHECK(documents.num_mtp_targets(1) == 1);
  CHECK(values(documents.doc(0).labels) == Ids{-100, 2, 3, 4});
  Documents single("d", 100, {1, 2}, {-100, 2}, {0, 2}, {});
  CHECK_THROWS_AS(single.truncate(1), UserError);
}

TEST_CASE("a token cache becomes documents and damage is refused", "[documents]") {
  const TemporaryFile file;
  const auto write = [&](const std::vector<std::int32_t>& tokens, const std::vector<std::int32_t>& labels,
                         const std::vector<std::int64_t>& offsets, DType label_type = DType::kI32) {
    const auto length = [](const auto& list) {
      return std::vector<std::int64_t>{static_cast<std::int64_t>(list.size())};
    };
    SafetensorsWriter writer(file.path,
                             {{"offsets", DType::kI64, length(offsets)},
                              {"tokens", DType::kI32, length(tokens)},
                              {"labels", label_type, length(labels)}},
                             {});
    writer.append("offsets", offsets.data(), offsets.size() * 8);
    writer.append("tokens", tokens.data(), tokens.size() * 4);
    writer.append("labels", labels.data(), labels.size() * 4);
    writer.commit();
  };
  write({1, 2, 3, 4, 5}, {-100, 2, -100, -100, 5}, {0, 2, 5});
  const Documents documents = Documents::from_cache(file.path, 6);
  REQUIRE(documents.size() == 2);
  CHECK(values(documents.doc(1).tokens) == Ids{3, 4, 5});
  CHECK(values(documents.doc(1).labels) == Ids{-100, -100, 5});
  CHECK(documents.name_of(1) == "document 1");
  CHECK_THROWS_AS(Documents::from_cache(file.path, 5), UserError);  // the id 5 is outside

  write({1, 2, 3}, {1, 2}, {0, 3});
  CHECK_THROWS_AS(Documents::from_cache(file.path, 6), UserError);
  for (const std::vector<std::int64_t>& offsets :
       {std::vector<std::int64_t>{0, 2}, {1, 3}, {0, 4, 3}, {0}, {}, {0, -1, 3}, {0, 3, 3}}) {
    write({1, 2, 3}, {1, 2, 3}, offsets);
    CHECK_THROWS_AS(Documents::from_cache(file.path, 6), UserError);
  }
  write({1, 2, 3}, {1, 2, 3}, {0, 3}, DType::kU32);
  CHECK_THROWS_AS(Documents::from_cache(file.path, 6), UserError);
}

namespace {

Documents part(const std::string& name, std::int32_t first, std::int64_t count) {
  std::vector<std::int32_t> tokens;
  std::vector<std::int64_t> offsets = {0};
  for (std::int64_t i = 0; i < 2 * count; ++i) tokens.push_back(first + static_cast<std::int32_t>(i));
  for (std::int64_t i = 1; i <= count; ++i) offsets.push_back(2 * i);
  std::vector<std::int32_t> labels = tokens;
  return Documents(name, 1000, std::move(tokens), std::move(labels), std::move(offsets), {});
}

Documents joined(const std::vector<std::pair<std::int64_t, double>>& sizes) {
  std::vector<Documents> parts;
  std::vector<double> weights;
  std::int32_t first = 0;
  for (const auto& [size, weight] : sizes) {
    parts.push_back(part(std::string(1, static_cast<char>('a' + parts.size())), first, size));
    weights.push_back(weight);
    first += static_cast<std::int32_t>(2 * size);
  }
  return Documents::joined("data.train", std::move(parts), weights);
}

std::vector<std::int32_t> first_tokens(const Documents& documents) {
  std::vector<std::int32_t> firsts;
  for (std::int64_t i = 0; i < documents.size(); ++i) firsts.push_back(documents.doc(i).tokens[0]);
  return firsts;
}

}  // namespace

TEST_CASE("documents of several sources are one row of documents", "[documents]") {
  Documents documents = joined({{3, 1.0}, {1, 2.5}, {2, 2.5}});
  REQUIRE(documents.size() == 6);
  CHECK(documents.num_tokens() == 12);
  CHECK(first_tokens(documents) == Ids{0, 2, 4, 6, 8, 10});
  CHECK(documents.name_of(2) == "document 2 of a");
  CHECK(documents.name_of(5) == "document 1 of c");
  const std::vector<Share> shares = documents.shares();
  REQUIRE(shares.size() == 2);
  CHECK((shares[0].begin == 0 && shares[0].end == 3 && shares[0].weight == 1.0));
  CHECK((shares[1].begin == 3 && shares[1].end == 6 && shares[1].weight == 2.5));
  CHECK(contains(message_of<UserError>([&] { documents.truncate(1); }),
                 "data.train: cutting to max_tokens 1 removes every target of 6 of 6 documents: document 0 of a"));
}

TEST_CASE("held-out documents leave the others, and come back the same", "[documents]") {
  struct Case {
    std::int64_t size;
    double part;
    std::int64_t held;
  };
  for (const Case& c : std::vector<Case>{{100, 0.1, 10}, {100, 0.001, 1}, {7, 0.5, 4}, {2, 0.999, 1}}) {
    INFO(c.size << " documents, " << c.part);
    Documents rest = joined({{c.size - 1, 1.0}, {1, 3.0}}), again = joined({{c.size - 1, 1.0}, {1, 3.0}});
    const Documents held = rest.split_off(c.part, 17);
    CHECK(held.size() == c.held);
    REQUIRE(rest.size() == c.size - c.held);
    Ids all = first_tokens(rest), taken = first_tokens(held);
    CHECK(std::is_sorted(all.begin(), all.end()));
    CHECK(std::is_sorted(taken.begin(), taken.end()));
    all.insert(all.end(), taken.begin(), taken.end());
    std::sort(all.begin(), all.end());
    CHECK(all == first_tokens(again));
    CHECK(first_tokens(again.split_off(c.part, 17)) == taken);
    CHECK(rest.num_tokens() + held.num_tokens() == 2 * c.size);
    // What is held out is evaluated once, whatever its weight; with the others it stays.
    for (const Share& share : held.shares()) CHECK(share.weight == 1.0);
    for (const Share& share : rest.shares()) {
      for (std::int64_t i = share.begin; i < share.end; ++i) {
        CHECK(share.weight == (rest.doc(i).tokens[0] == 2 * (c.size - 1) ? 3.0 : 1.0));
      }
    }
  }
  Documents some = joined({{100, 1.0}}), other = joined({{100, 1.0}}), one = joined({{1, 1.0}});
  CHECK(first_tokens(some.split_off(0.3, 1)) != first_tokens(other.split_off(0.3, 2)));
  CHECK(contains(message_of<UserError>([&] { one.split_off(0.5, 1); }), "holds one document"));
}

TEST_CASE("weights of a token cache", "[documents]") {
  const TemporaryFile file;
  const auto write = [&](const std::vector<float>& weights) {
    const std::vector<std::int32_t> tokens = {1, 2, 3, 4};
    const std::vector<std::int64_t> offsets = {0, 2, 4};
    SafetensorsWriter writer(file.path,
                             {{"offsets", DType::kI64, {3}},
                              {"tokens", DType::kI32, {4}},
                              {"labels", DType::kI32, {4}},
                              {"weights", DType::kF32, {static_cast<std::int64_t>(weights.size())}}},
                             {});
    writer.append("offsets", offsets.data(), 24);
    for (const char* name : {"tokens", "labels"}) writer.append(name, tokens.data(), 16);
    writer.append("weights", weights.data(), weights.size() * 4);
    writer.commit();
  };
  write({7.0F, 0.5F, 7.0F, 2.0F});
  const Documents documents = Documents::from_cache(file.path, 6, "train.jsonl");
  CHECK(documents.weighted());
  CHECK(documents.doc(0).weight(1) == 0.5F);
  CHECK(documents.doc(1).weight(1) == 2.0F);
  CHECK(documents.num_targets(0) == 1);
  documents.let_go();
  CHECK(documents.doc(1).tokens[1] == 4);  // comes back from the file
  for (const auto& [weights, told] : std::vector<std::pair<std::vector<float>, std::string>>{
           {{1.0F, 1.0F, 1.0F, 0.0F}, "train.jsonl: these documents cannot be trained on:\n  no target in 1 of 2"},
           {{1.0F, -1.0F, 1.0F, 1.0F},
            "weights that are no finite numbers of at least 0 in 1 of 2 documents: document 0"},
           {{1.0F, 1.0F, 1.0F, INFINITY}, "weights that are no finite numbers"},
           {{1.0F, 1.0F}, "4 tokens but 2 weights"}}) {
    write(weights);
    CHECK(contains(message_of<UserError>([&] { Documents::from_cache(file.path, 6, "train.jsonl"); }), told));
  }
}

TEST_CASE("a mapped cache costs no memory of its own", "[documents]") {
  constexpr std::int64_t kTokens = 16 << 20, kLength = 64;  // 128 MiB of tokens and labels
  const TemporaryFile file;
  {
    const std::vector<std::int32_t> tokens(kTokens, 5);
    std::vector<std::int64_t> offsets;
    for (std::int64_t begin = 0; begin <= kTokens; begin += kLength) offsets.push_back(begin);
    SafetensorsWriter writer(file.path,
                             {{"offsets", DType::kI64, {kTokens / kLength + 1}},
                              {"tokens", DType::kI32, {kTokens}},
                              {"labels", DType::kI32, {kTokens}}},
                             {});
    writer.append("offsets", offsets.data(), offsets.size() * 8);
    for (const char* name : {"tokens", "labels"}) writer.append(name, tokens.data(), kTokens * 4);
    writer.commit();
  }
  const auto resident_bytes = [] {
    std::ifstream statm("/proc/self/statm");
    std::int64_t size = 0, pages = 0;
    statm >> size >> pages;
    return pages * ::sysconf(_SC_PAGE_SIZE);
  };
  const std::int64_t before = resident_bytes();
  const Documents documents = Documents::from_cache(file.path, 6);
  const std::int64_t after = resident_bytes();
  CHECK(documents.num_tokens() == kTokens);
  CHECK(after - before < 16 << 20);  // 4 bytes a document, and what a walk leaves
  std::int64_t sum = 0;
  for (std::int64_t i = 0; i < documents.size(); ++i) sum += documents.doc(i).tokens[kLength - 1];
  CHECK(sum == 5 * kTokens / kLength);
  documents.let_go();
  CHECK(resident_bytes() - before < 16 << 20);
}
