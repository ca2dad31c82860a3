#include "trainer/plan/data_amount.h"

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <limits>
#include <map>

#include <nlohmann/json.hpp>

#include "parallel/base/ceil_div.h"
#include "parallel/base/error.h"
#include "parallel/base/strict_json.h"
#include "trainer/data/batches.h"
#include "trainer/data/data_files.h"
#include "trainer/data/documents.h"
#include "trainer/data/shuffle.h"

namespace moetune {
namespace {

namespace fs = std::filesystem;

// Lengths are of interest, not ids.
constexpr int64_t kAnyVocabulary = std::numeric_limits<int32_t>::max();
// What is packed document by document; more documents are packed as a sample of that many.
constexpr int64_t kSample = 20000;
constexpr int64_t kOpenSequences = 64;
constexpr uint64_t kAnySeed = 17;

std::vector<LengthCount> counted(const std::map<int64_t, int64_t>& documents) {
  std::vector<LengthCount> lengths;
  for (const auto& [length, count] : documents) lengths.push_back({length, count});
  return lengths;
}

/// Cuts `part` of `all` into shares of what `all` consists of, one call after the other: none is off by one or more,
/// and together they are `part`.
class Shares {
 public:
  Shares(double part, double all) : part_(part), all_(all) {}
  int64_t of(int64_t documents) {
    const int64_t before = given_;
    seen_ += static_cast<double>(documents);
    given_ = std::llround(part_ * seen_ / all_);
    return given_ - before;
  }

 private:
  double part_, all_, seen_ = 0.0;
  int64_t given_ = 0;
};

std::vector<LengthCount> lengths_in(const Documents& documents) {
  std::map<int64_t, int64_t> counts;
  for (int64_t i = 0; i < documents.size(); ++i) ++counts[documents.length(i)];
  return counted(counts);
}

}  // namespace

int64_t PackedData::fullest_rank(int64_t batch, int64_t ranks) const {
  // One that is alone in a step of usual sequences, on a rank that gets nothing more where the others have room.
  const double usual = tokens_a_sequence * static_cast<double>(batch - 1);
  int64_t most = std::max(longest, ceil_div(longest + static_cast<int64_t>(usual), ranks));
  if (drawn.size() == 1) return std::max(most, ceil_div(batch, ranks) * drawn.front());
  std::vector<int64_t> step(static_cast<size_t>(batch)), loads;
  const auto count = static_cast<int64_t>(drawn.size());
  for (int64_t first = 0; first < count; first += batch) {
    for (int64_t i = 0; i < batch; ++i) step[i] = drawn[(first + i) % count];
    const std::vector<int64_t> rank_of = deal_out(step, ranks);
    loads.assign(static_cast<size_t>(ranks), 0);
    for (int64_t i = 0; i < batch; ++i) most = std::max(most, loads[rank_of[i]] += step[i]);
  }
  return most;
}

DataAmount::DataAmount(std::vector<LengthCount> lengths, std::string source)
    : lengths_(std::move(lengths)), source_(std::move(source)) {
  if (documents() == 0) throw UserError(str(source_, ": no documents"));
}

DataAmount DataAmount::of_equal(int64_t documents, int64_t tokens) {
  return DataAmount({{tokens, documents}}, str(documents, " documents of ", tokens, " tokens"));
}

DataAmount DataAmount::of_file(const std::string& path) {
  if (fs::path(path).extension() == ".json") {
    std::map<int64_t, int64_t> counts;
    const nlohmann::json histogram = read_json_object(path);
    for (const auto& [length, documents] : histogram.items()) {
      const bool is_number = !length.empty() && length.size() < 10 &&
                             std::all_of(length.begin(), length.end(), [](char c) { return c >= '0' && c <= '9'; });
      if (!is_number || std::stoll(length) < 1 || !documents.is_number_integer() || documents.get<int64_t>() < 0) {
        throw UserError(str(path, ": \"", length, "\": ", shown(documents),
                            "; a histogram is {\"tokens of a document\": documents, ...}"));
      }
      counts[std::stoll(length)] += documents.get<int64_t>();
    }
    return DataAmount(counted(counts), path);
  }
  const Documents documents = fs::path(path).extension() == ".safetensors"
                                  ? Documents::from_cache(path, kAnyVocabulary)
                                  : Documents::from_jsonl(path, kAnyVocabulary);
  return DataAmount(lengths_in(documents), path);
}

std::vector<LengthCount> DataAmount::lengths_of(const Recipe& recipe) {
  std::map<int64_t, int64_t> counts;
  try {
    for (const DataFile& file : select_files(recipe, "data.train", recipe.data.train).files) {
      if (fs::path(file.path).extension() != ".jsonl" || !Documents::is_tokenised_jsonl(file.path)) return {};
      Shares weighted(file.weight, 1.0);
      for (const LengthCount& of :
           lengths_in(Documents::from_jsonl(file.path, kAnyVocabulary, recipe.data.ignore_keys))) {
        counts[of.length] += weighted.of(of.documents);
      }
    }
  } catch (const UserError&) {
    return {};  // training will say what is wrong; a plan does without
  }
  return counted(counts);
}

DataAmount DataAmount::without_held_out(double part) const {
  const int64_t all = documents();
  if (all < 2) {
    throw UserError(str(source_, ": one document; to hold documents out (data.eval_split: ", part,
                        ") takes two at least; add data, or set it to 0"));
  }
  const int64_t held = Documents::num_split_off(part, all);
  Shares trained(static_cast<double>(all - held), static_cast<double>(all));
  std::vector<LengthCount> rest;
  for (const LengthCount& of : lengths_) rest.push_back({of.length, trained.of(of.documents)});
  return DataAmount(std::move(rest), str(source_, ", ", held, " held out"));
}

int64_t DataAmount::documents() const {
  int64_t documents = 0;
  for (const LengthCount& of : lengths_) documents += of.documents;
  return documents;
}

int64_t DataAmount::tokens() const {
  int64_t tokens = 0;
  for (const LengthCount& of : lengths_) tokens += of.documents * of.length;
  return tokens;
}

PackedData DataAmount::packed(int64_t max_tokens, bool packing) const {
  const int64_t all = documents();
  PackedData packed;
  double tokens = 0.0;
  std::vector<LengthCount> cut;
  std::vector<int64_t> sample;
  Shares sampled(static_cast<double>(std::min(all, kSample)), static_cast<double>(all));
  int64_t shortest = max_tokens;
  for (const LengthCount& of : lengths_) {
    const int64_t length = std::min(of.length, max_tokens);
    tokens += static_cast<double>(of.documents) * static_cast<double>(length);
    cut.push_back({length, of.documents});
    if (of.documents == 0) continue;
    packed.longest = std::max(packed.longest, length);
    shortest = std::min(shortest, length);
    sample.insert(sample.end(), static_cast<size_t>(sampled.of(of.documents)), length);
  }
  packed.keys = SeenKeys(std::move(cut));
  packed.sequences = all;
  if (packing && shortest == packed.longest) {
    const int64_t together = std::max<int64_t>(1, max_tokens / packed.longest);
    packed.sequences = ceil_div(all, together);
    packed.drawn = {std::min(all, together) * packed.longest};
  } else if (packing) {
    // Lengths in an order without a pattern: every document as far from the last as the golden ratio has it.
    std::vector<int64_t> mixed(sample.size());
    constexpr double kGolden = 0.6180339887498949;
    std::vector<std::pair<double, int64_t>> places;
    for (size_t i = 0; i < sample.size(); ++i) {
      const double place = kGolden * static_cast<double>(i);
      places.emplace_back(place - std::floor(place), sample[i]);
    }
    std::stable_sort(places.begin(), places.end(), [](const auto& a, const auto& b) { return a.first < b.first; });
    for (size_t i = 0; i < places.size(); ++i) mixed[i] = places[i].second;
    const std::vector<int64_t> sequence_of = pack(mixed, max_tokens, kOpenSequences);
    const int64_t sequences = 1 + *std::max_element(sequence_of.begin(), sequence_of.end());
    packed.drawn.resize(static_cast<size_t>(sequences));
    for (size_t i = 0; i < mixed.size(); ++i) packed.drawn[sequence_of[i]] += mixed[i];
    packed.sequences = std::max<int64_t>(
        1, static_cast<int64_t>(std::ceil(
               static_cast<double>(sequences) * static_cast<double>(all) / static_cast<double>(mixed.size()) - 1e-9)));
  } else if (shortest == packed.longest) {
    packed.drawn = {packed.longest};
  } else {
    for (const int64_t i : shuffled_order(static_cast<int64_t>(sample.size()), kAnySeed, /*epoch=*/0)) {
      packed.drawn.push_back(sample[i]);
    }
  }
  packed.tokens_a_sequence = tokens / static_cast<double>(packed.sequences);
  return packed;
}

}  // namespace moetune
