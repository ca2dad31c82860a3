#include "trainer/data/batches.h"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <queue>
#include <set>
#include <utility>

#include "parallel/base/ceil_div.h"
#include "parallel/base/error.h"
#include "parallel/base/splitmix64.h"
#include "trainer/data/shuffle.h"

namespace moetune {
namespace {

constexpr std::int64_t kOpenSequences = 64;

/// Where a run of documents that begins with `first` ends, if it takes what `most` tokens hold.
std::int64_t reach(std::span<const std::int64_t> begins, std::int64_t first, std::int64_t most) {
  return std::upper_bound(begins.begin() + first, begins.end(), begins[first] + most) - begins.begin() - 1;
}

/// The least tokens of the longest of `count` runs of documents.
std::int64_t least_longest_run(std::span<const std::int64_t> begins, std::int64_t count) {
  const auto last = static_cast<std::int64_t>(begins.size()) - 1;
  const auto suffice = [&](std::int64_t most) {
    std::int64_t end = 0;
    for (std::int64_t run = 0; run < count && end < last; ++run) end = reach(begins, end, most);
    return end == last;
  };
  std::int64_t too_few = ceil_div(begins.back(), count) - 1, enough = begins.back();
  while (enough - too_few > 1) {
    const std::int64_t tried = too_few + (enough - too_few) / 2;
    (suffice(tried) ? enough : too_few) = tried;
  }
  return enough;
}

}  // namespace

std::vector<std::int64_t> pack(std::span<const std::int64_t> lengths, std::int64_t max_tokens, std::int64_t num_open) {
  std::vector<std::int64_t> sequence_of(lengths.size()), room;
  std::set<std::pair<std::int64_t, std::int64_t>> open;  // (room, sequence)
  for (size_t i = 0; i < lengths.size(); ++i) {
    const auto found = open.lower_bound({lengths[i], 0});
    std::int64_t sequence;
    if (found != open.end()) {
      sequence = found->second;
      open.erase(found);
    } else {
      sequence = static_cast<std::int64_t>(room.size());
      room.push_back(max_tokens);
      if (sequence >= num_open) open.erase({room[sequence - num_open], sequence - num_open});
    }
    room[sequence] -= lengths[i];
    open.insert({room[sequence], sequence});
    sequence_of[i] = sequence;
  }
  return sequence_of;
}

std::vector<std::int64_t> group_ends(std::span<const std::int64_t> begins, std::int64_t count) {
  MT_CHECK(count >= 1 && !begins.empty() && begins.front() == 0, count, " groups of ", begins.size(), " bounds");
  const auto last = static_cast<std::int64_t>(begins.size()) - 1;
  const std::int64_t tokens = begins.back(), most = least_longest_run(begins, count);
  // Where each run has to end at the earliest, for the rest to find room behind it.
  std::vector<std::int64_t> earliest(count, last);
  for (std::int64_t run = count - 1; run > 0; --run) {
    earliest[run - 1] = std::lower_bound(begins.begin(), begins.end(), begins[earliest[run]] - most) - begins.begin();
  }
  std::vector<std::int64_t> ends;
  for (std::int64_t run = 0, first = 0; run < count; ++run) {
    // A document belongs to the run that its middle falls into, were the tokens cut evenly.
    std::int64_t end = first;
    while (end < last && (begins[end] + begins[end + 1]) * count < 2 * tokens * (run + 1)) ++end;
    first = std::min(std::max(end, earliest[run]), reach(begins, first, most));
    ends.push_back(first);
  }
  return ends;
}

std::vector<std::int64_t> deal_out(std::span<const std::int64_t> sequence_tokens, std::int64_t num_ranks) {
  std::vector<std::int64_t> longest_first(sequence_tokens.size());
  std::iota(longest_first.begin(), longest_first.end(), 0);
  std::stable_sort(longest_first.begin(), longest_first.end(),
                   [&](std::int64_t a, std::int64_t b) { return sequence_tokens[a] > sequence_tokens[b]; });
  using Load = std::pair<std::int64_t, std::int64_t>;  // (tokens, rank)
  std::vector<Load> loads;
  for (std::int64_t rank = 0; rank < num_ranks; ++rank) loads.emplace_back(0, rank);
  std::priority_queue<Load, std::vector<Load>, std::greater<>> least_loaded(std::greater<>(), std::move(loads));
  std::vector<std::int64_t> rank_of(sequence_tokens.size());
  for (const std::int64_t sequence : longest_first) {
    const auto [tokens, rank] = least_loaded.top();
    least_loaded.pop();
    least_loaded.emplace(tokens + sequence_tokens[sequence], rank);
    rank_of[sequence] = rank;
  }
  return rank_of;
}

Batches::Batches(const Documents& documents, const BatchOptions& options)
    : documents_(documents), options_(options), shares_(documents.shares()) {
  MT_CHECK(documents.size() > 0, "no documents");
  MT_CHECK(options.batch >= 1 && options.max_tokens >= 1 && options.epochs >= 0, "batch ", options.batch,
           ", max_tokens ", options.max_tokens, ", epochs ", options.epochs);
  for (const Share& share : shares_) MT_CHECK(share.weight > 0.0, "a weight of ", share.weight);
  for (std::int64_t i = 0; i < documents.size(); ++i) {
    MT_CHECK(documents.length(i) <= options.max_tokens, documents.name_of(i), " has ", documents.length(i), " tokens, ",
             "a sequence at most ", options.max_tokens);
  }
}

std::vector<std::int64_t> Batches::documents_of(std::int64_t epoch) const {
  std::vector<std::int64_t> taken;
  for (size_t s = 0; s < shares_.size(); ++s) {
    const auto [begin, end, weight] = shares_[s];
    const double whole = std::floor(weight);
    for (std::int64_t pass = 0; pass < static_cast<std::int64_t>(whole); ++pass) {
      for (std::int64_t i = begin; i < end; ++i) taken.push_back(i);
    }
    const double rest = (weight - whole) * static_cast<double>(end - begin);
    const std::int64_t count =
        std::llround(rest * static_cast<double>(epoch + 1)) - std::llround(rest * static_cast<double>(epoch));
    if (count == 0) continue;
    std::vector<std::int64_t> drawn = shuffled_order(end - begin, splitmix64_at(~options_.seed, s), epoch);
    drawn.resize(static_cast<size_t>(count));
    std::sort(drawn.begin(), drawn.end());
    for (const std::int64_t i : drawn) taken.push_back(begin + i);
  }
  return taken;
}

Batches::Epoch Batches::plan(std::int64_t index) const {
  std::vector<std::int64_t> order = documents_of(index);
  if (options_.shuffle) {
    const std::vector<std::int64_t> taken = std::move(order);
    order = shuffled_order(static_cast<std::int64_t>(taken.size()), options_.seed, index);
    for (std::int64_t& i : order) i = taken[i];
  }
  std::vector<std::int64_t> lengths(order.size());
  std::transform(order.begin(), order.end(), lengths.begin(), [&](std::int64_t i) { return documents_.length(i); });

  std::vector<std::int64_t> sequence_of(order.size());
  if (options_.packing) {
    sequence_of = pack(lengths, options_.max_tokens, options_.shuffle ? kOpenSequences : 1);
  } else {
    std::iota(sequence_of.begin(), sequence_of.end(), 0);
  }

  // Counting sort of the documents by their sequence; within a sequence they keep their order.
  Epoch epoch;
  epoch.index = index;
  const size_t num_sequences =
      order.empty() ? 0 : static_cast<size_t>(*std::max_element(sequence_of.begin(), sequence_of.end()) + 1);
  epoch.tokens.resize(num_sequences);
  epoch.begins.resize(num_sequences + 1);
  for (size_t i = 0; i < order.size(); ++i) {
    epoch.tokens[sequence_of[i]] += static_cast<std::int32_t>(lengths[i]);
    ++epoch.begins[sequence_of[i] + 1];
  }
  std::partial_sum(epoch.begins.begin(), epoch.begins.end(), epoch.begins.begin());
  epoch.documents.resize(order.size());
  std::vector<std::uint32_t> next(epoch.begins.begin(), epoch.begins.end() - 1);
  for (size_t i = 0; i < order.size(); ++i) {
    epoch.documents[next[sequence_of[i]]++] = static_cast<std::uint32_t>(order[i]);
  }
  return epoch;
}

const Batches::Epoch& Batches::epoch(std::int64_t index) {
  Epoch& slot = recent_[index % 2];
  if (slot.index != index) slot = plan(index);
  if (index + 1 == static_cast<std::int64_t>(first_sequences_.size())) {
    first_sequences_.push_back(first_sequences_.back() + static_cast<std::int64_t>(slot.tokens.size()));
  }
  return slot;
}

template <typename Visit>
void Batches::for_each_sequence(std::int64_t step, const Visit& visit) {
  MT_CHECK(step >= 0, "step ", step);
  const std::int64_t first = step * options_.batch;
  const auto planned = [&] { return static_cast<std::int64_t>(first_sequences_.size()) - 1; };
  const auto exists = [&](std::int64_t index) { return options_.epochs == 0 || index < options_.epochs; };
  while (first_sequences_.back() <= first && exists(planned())) epoch(planned());
  std::int64_t index =
      std::upper_bound(first_sequences_.begin(), first_sequences_.end(), first) - first_sequences_.begin() - 1;
  for (std::int64_t number = first; number < first + options_.batch;) {
    if (!exists(index)) return;
    const Epoch& current = epoch(index);
    const std::int64_t begin = first_sequences_[index];
    for (; number < std::min(first + options_.batch, first_sequences_[index + 1]); ++number) {
      const auto i = static_cast<size_t>(number - begin);
      const auto num_documents = static_cast<size_t>(current.begins[i + 1] - current.begins[i]);
      visit(Sequence{{current.documents.data() + current.begins[i], num_documents}, current.tokens[i]});
    }
    ++index;
  }
}

std::int64_t Batches::sequences_of_epochs(std::int64_t epochs) {
  MT_CHECK(epochs >= 1 && (options_.epochs == 0 || epochs <= options_.epochs), "epochs ", epochs);
  while (static_cast<std::int64_t>(first_sequences_.size()) <= epochs) {
    epoch(static_cast<std::int64_t>(first_sequences_.size()) - 1);
  }
  return first_sequences_[epochs];
}

std::int64_t Batches::steps_of_epochs(std::int64_t epochs) {
  return ceil_div(sequences_of_epochs(epochs), options_.batch);
}

Batch Batches::at(std::int64_t step) {
  Batch batch;
  const bool weighted = documents_.weighted();
  if (weighted) batch.totals.target_weight = batch.totals.mtp_target_weight = 0.0;
  for_each_sequence(step, [&](const Sequence& sequence) {
    batch.sequences.emplace_back(sequence.documents.begin(), sequence.documents.end());
    ++batch.totals.sequences;
    batch.totals.documents += static_cast<std::int64_t>(sequence.documents.size());
    batch.totals.tokens += sequence.tokens;
    for (const std::uint32_t i : sequence.documents) {
      batch.totals.targets += documents_.num_targets(i);
      batch.totals.mtp_targets += documents_.num_mtp_targets(i);
      if (!weighted) continue;
      const Document document = documents_.doc(i);
      for (size_t t = 1; t < document.labels.size(); ++t) {
        if (!document.is_target(t)) continue;
        *batch.totals.target_weight += document.weight(t);
        if (t > 1) *batch.totals.mtp_target_weight += document.weight(t);
      }
    }
  });
  return batch;
}

RankBatch Batches::local(std::int64_t step, std::int64_t data_rank, std::int64_t num_data_ranks) {
  MT_CHECK(data_rank >= 0 && data_rank < num_data_ranks, "data rank ", data_rank, " of ", num_data_ranks);
  const Batch batch = at(step);
  std::vector<std::int64_t> sequence_tokens;
  for (const auto& sequence : batch.sequences) {
    std::int64_t tokens = 0;
    for (const std::int64_t i : sequence) tokens += documents_.length(i);
    sequence_tokens.push_back(tokens);
  }
  const std::vector<std::int64_t> rank_of = deal_out(sequence_tokens, num_data_ranks);

  const bool weighted = documents_.weighted();
  RankBatch mine;
  mine.global = batch.totals;
  mine.document_begins = {0};
  mine.sequence_begins = {0};
  size_t num_tokens = 0;
  for (size_t s = 0; s < rank_of.size(); ++s) num_tokens += rank_of[s] == data_rank ? sequence_tokens[s] : 0;
  mine.tokens.reserve(num_tokens);
  mine.targets.reserve(num_tokens);
  mine.positions.resize(num_tokens);
  mine.global_tokens.resize(num_tokens);

  std::int64_t sequence_global_token = 0;
  for (size_t s = 0; s < rank_of.size(); sequence_global_token += sequence_tokens[s++]) {
    if (rank_of[s] != data_rank) continue;
    std::int64_t global_token = sequence_global_token;
    for (const std::int64_t i : batch.sequences[s]) {
      const Document document = documents_.doc(i);
      const size_t length = document.tokens.size();
      const std::int64_t begin = mine.document_begins.back();
      const auto end = begin + static_cast<std::int64_t>(length);
      mine.tokens.insert(mine.tokens.end(), document.tokens.begin(), document.tokens.end());
      for (size_t t = 1; t < length; ++t) {
        mine.targets.push_back(document.is_target(t) ? document.labels[t] : kNotTrained);
        if (weighted) mine.target_weights.push_back(document.weight(t));
      }
      mine.targets.push_back(kNotTrained);
      if (weighted) mine.target_weights.push_back(0.0F);
      std::iota(mine.positions.begin() + begin, mine.positions.begin() + end, 0);
      std::iota(mine.global_tokens.begin() + begin, mine.global_tokens.begin() + end, global_token);
      mine.documents.push_back(i);
      mine.document_begins.push_back(end);
      global_token += end - begin;
    }
    mine.sequence_begins.push_back(mine.document_begins.back());
  }
  documents_.let_go();
  return mine;
}

Batches::Peak Batches::fullest_step(std::int64_t num_steps, std::int64_t num_data_ranks, std::int64_t groups) {
  Peak peak;
  std::vector<std::int64_t> sequence_tokens;
  std::vector<std::vector<std::int64_t>> lengths;                 // of the documents of each sequence, where groups ask
  std::vector<std::vector<std::int64_t>> begins(num_data_ranks);  // of the documents of each rank, or of its sequences
  for (std::int64_t step = 0; step < num_steps; ++step) {
    sequence_tokens.clear();
    lengths.clear();
    for_each_sequence(step, [&](const Sequence& sequence) {
      sequence_tokens.push_back(sequence.tokens);
      if (groups == 1) return;
      lengths.emplace_back();
      for (const std::uint32_t i : sequence.documents) lengths.back().push_back(documents_.length(i));
    });
    const std::vector<std::int64_t> rank_of = deal_out(sequence_tokens, num_data_ranks);
    for (std::vector<std::int64_t>& of_rank : begins) of_rank.assign(1, 0);
    for (size_t s = 0; s < rank_of.size(); ++s) {
      std::vector<std::int64_t>& of_rank = begins[rank_of[s]];
      if (groups == 1) of_rank.push_back(of_rank.back() + sequence_tokens[s]);
      else
        for (const std::int64_t length : lengths[s]) of_rank.push_back(of_rank.back() + length);
    }
    for (const std::vector<std::int64_t>& of_rank : begins) {
      if (of_rank.back() > peak.tokens) peak.step = step, peak.tokens = of_rank.back();
      peak.group_tokens = std::max(peak.group_tokens, least_longest_run(of_rank, groups));
    }
  }
  return peak;
}

}  // namespace moetune
