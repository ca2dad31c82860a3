#include "trainer/data/documents.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include "parallel/base/error.h"
#include "trainer/data/shuffle.h"

namespace moetune {
namespace {

// How many places a message names before it only counts.
constexpr size_t kNamedPlaces = 5;
// What a walk over all documents keeps of a mapped source at a time.
constexpr std::int64_t kWalkTokens = std::int64_t{8} << 20;
// No epoch has this number: the order that held-out documents are taken from is no epoch's.
constexpr std::int64_t kHeldOutOrder = -1;

// "3 of 9 documents: document 0 (line 1), document 4 (line 5), ..."
std::string places(const Documents& documents, const std::vector<std::int64_t>& which) {
  std::string text = str(which.size(), " of ", documents.size(), " documents: ");
  for (size_t i = 0; i < std::min(which.size(), kNamedPlaces); ++i) {
    text += (i ? ", " : "") + documents.name_of(which[i]);
  }
  return which.size() > kNamedPlaces ? text + ", ..." : text;
}

std::int64_t num_targets_from(const Document& document, size_t first) {
  std::int64_t count = 0;
  for (size_t t = first; t < document.labels.size(); ++t) count += document.is_target(t) ? 1 : 0;
  return count;
}

}  // namespace

Documents::Documents(std::string path, std::int64_t vocab_size, std::vector<std::int32_t> tokens,
                     std::vector<std::int32_t> labels, std::vector<std::int64_t> offsets,
                     std::vector<std::int64_t> lines, std::vector<float> weights)
    : Documents(TokenSource::of_vectors(std::move(path), std::move(tokens), std::move(labels), std::move(offsets),
                                        std::move(lines), std::move(weights)),
                vocab_size) {}

Documents::Documents(std::shared_ptr<const TokenSource> source, std::int64_t vocab_size) : name_(source->name) {
  const std::int64_t num_documents = source->size();
  if (num_documents > std::numeric_limits<std::uint32_t>::max()) {
    throw UserError(str(name_, ": ", num_documents, " documents; at most 2^32 - 1 are trained on"));
  }
  parts_.push_back({std::move(source)});
  num_targets_.resize(static_cast<size_t>(num_documents));
  second_is_target_.resize(num_targets_.size());
  std::vector<std::int64_t> outside, masked, no_weight;
  std::int64_t walked = 0;
  for (std::int64_t i = 0; i < num_documents; ++i) {
    const Document document = doc(i);
    num_tokens_ += length(i);
    walked += length(i);
    const auto fits = [&](std::int32_t id) { return id >= 0 && id < vocab_size; };
    if (!std::all_of(document.tokens.begin(), document.tokens.end(), fits) ||
        !std::all_of(document.labels.begin(), document.labels.end(),
                     [&](std::int32_t label) { return label == kNotTrained || fits(label); })) {
      outside.push_back(i);
    }
    if (!std::all_of(document.weights.begin(), document.weights.end(),
                     [](float weight) { return weight >= 0.0F && std::isfinite(weight); })) {
      no_weight.push_back(i);
    }
    count_targets(i, document);
    if (num_targets_[i] == 0) masked.push_back(i);
    if (walked >= kWalkTokens) {
      let_go();
      walked = 0;
    }
  }
  let_go();
  std::string faults;
  if (!outside.empty()) {
    faults += str("\n  ids outside the vocabulary of the model in ", places(*this, outside), ". Allowed are 0 to ",
                  vocab_size - 1, ", and ", kNotTrained, " as a label; tokenise with the model's own tokenizer");
  }
  if (!no_weight.empty()) {
    faults += str("\n  weights that are no finite numbers of at least 0 in ", places(*this, no_weight),
                  ". The file is damaged: make it anew");
  }
  if (!masked.empty()) {
    faults += str("\n  no target in ", places(*this, masked), ". A document needs a label other than ", kNotTrained,
                  " after its first position; remove these documents or unmask what is to be learnt");
  }
  if (!faults.empty()) throw UserError(name_ + ": these documents cannot be trained on:" + faults);
}

Documents Documents::joined(const std::string& name, std::vector<Documents> parts, const std::vector<double>& weights) {
  MT_CHECK(!parts.empty() && parts.size() == weights.size(), parts.size(), " parts, ", weights.size(), " weights");
  Documents all;
  all.name_ = name;
  std::int64_t first = 0;
  for (size_t p = 0; p < parts.size(); ++p) {
    Documents& part = parts[p];
    MT_CHECK(part.parts_.size() == 1 && part.chosen_.empty(), part.name_, " has been joined or split before");
    all.parts_.push_back({part.parts_[0].source, first, weights[p]});
    all.num_targets_.insert(all.num_targets_.end(), part.num_targets_.begin(), part.num_targets_.end());
    all.second_is_target_.insert(all.second_is_target_.end(), part.second_is_target_.begin(),
                                 part.second_is_target_.end());
    all.num_tokens_ += part.num_tokens_;
    first += part.size();
    part = Documents();
  }
  if (first > std::numeric_limits<std::uint32_t>::max()) {
    throw UserError(str(name, ": ", first, " documents; at most 2^32 - 1 are trained on"));
  }
  return all;
}

void Documents::count_targets(std::int64_t i, const Document& document) {
  num_targets_[i] = static_cast<std::uint32_t>(num_targets_from(document, 1));
  second_is_target_[i] = document.labels.size() > 1 && document.is_target(1);
}

Documents::Place Documents::place(std::int64_t i) const {
  const std::int64_t number = chosen_.empty() ? i : static_cast<std::int64_t>(chosen_[i]);
  const auto behind = std::upper_bound(parts_.begin(), parts_.end(), number,
                                       [](std::int64_t wanted, const Part& part) { return wanted < part.first; });
  const Part& part = *std::prev(behind);
  return {&part, number - part.first};
}

std::int64_t Documents::length(std::int64_t i) const {
  const auto [part, document] = place(i);
  const auto& offsets = part->source->offsets;
  return std::min(offsets[document + 1] - offsets[document], max_tokens_);
}

Document Documents::doc(std::int64_t i) const {
  const auto [part, document] = place(i);
  const TokenSource& source = *part->source;
  const auto begin = static_cast<size_t>(source.offsets[document]);
  const auto count =
      static_cast<size_t>(std::min(source.offsets[document + 1] - source.offsets[document], max_tokens_));
  return {source.tokens.subspan(begin, count), source.labels.subspan(begin, count),
          source.weights.empty() ? std::span<const float>() : source.weights.subspan(begin, count)};
}

bool Documents::weighted() const {
  return std::any_of(parts_.begin(), parts_.end(), [](const Part& part) { return !part.source->weights.empty(); });
}

std::string Documents::name_of(std::int64_t i) const {
  const auto [part, document] = place(i);
  const TokenSource& source = *part->source;
  return str("document ", document, source.lines.empty() ? "" : str(" (line ", source.lines[document], ")"),
             parts_.size() == 1 ? "" : " of " + source.name);
}

std::vector<Share> Documents::shares() const {
  std::vector<Share> shares;
  std::int64_t begin = 0;
  for (size_t p = 0; p < parts_.size(); ++p) {
    std::int64_t end = p + 1 < parts_.size() ? parts_[p + 1].first : size();
    if (!chosen_.empty()) {
      end = p + 1 < parts_.size()
                ? std::lower_bound(chosen_.begin(), chosen_.end(), static_cast<std::uint32_t>(parts_[p + 1].first)) -
                      chosen_.begin()
                : static_cast<std::int64_t>(chosen_.size());
    }
    if (!shares.empty() && shares.back().weight == parts_[p].weight) {
      shares.back().end = end;
    } else {
      shares.push_back({begin, end, parts_[p].weight});
    }
    begin = end;
  }
  return shares;
}

std::int64_t Documents::truncate(std::int64_t max_tokens) {
  std::vector<std::int64_t> longer, emptied;
  for (std::int64_t i = 0; i < size(); ++i) {
    if (length(i) <= max_tokens) continue;
    longer.push_back(i);
    Document document = doc(i);
    document.labels = document.labels.first(static_cast<size_t>(max_tokens));
    if (num_targets_from(document, 1) == 0) emptied.push_back(i);
  }
  if (!emptied.empty()) {
    throw UserError(str(name_, ": cutting to max_tokens ", max_tokens, " removes every target of ",
                        places(*this, emptied), ". Raise data.max_tokens, or shorten or remove these documents"));
  }
  for (const std::int64_t i : longer) num_tokens_ -= length(i) - max_tokens;
  max_tokens_ = std::min(max_tokens_, max_tokens);
  for (const std::int64_t i : longer) count_targets(i, doc(i));
  let_go();
  return static_cast<std::int64_t>(longer.size());
}

Documents Documents::chosen(const std::vector<std::int64_t>& indices) const {
  Documents few;
  few.name_ = name_;
  few.parts_ = parts_;
  few.max_tokens_ = max_tokens_;
  for (const std::int64_t i : indices) {
    few.chosen_.push_back(chosen_.empty() ? static_cast<std::uint32_t>(i) : chosen_[i]);
    few.num_targets_.push_back(num_targets_[i]);
    few.second_is_target_.push_back(second_is_target_[i]);
    few.num_tokens_ += length(i);
  }
  return few;
}

std::int64_t Documents::num_split_off(double part, std::int64_t all) {
  return std::clamp<std::int64_t>(std::llround(part * static_cast<double>(all)), 1, all - 1);
}

Documents Documents::split_off(double part, std::uint64_t seed) {
  if (size() < 2) {
    throw UserError(str(name_, ": holds one document; to hold documents out (data.eval_split) takes two at least"));
  }
  const std::int64_t count = num_split_off(part, size());
  const std::vector<std::int64_t> order = shuffled_order(size(), seed, kHeldOutOrder);
  std::vector<std::int64_t> held(order.begin(), order.begin() + count), rest(order.begin() + count, order.end());
  std::sort(held.begin(), held.end());
  std::sort(rest.begin(), rest.end());
  Documents held_out = chosen(held);
  for (Part& part : held_out.parts_) part.weight = 1.0;
  *this = chosen(rest);
  return held_out;
}

void Documents::let_go() const {
  for (const Part& part : parts_) part.source->let_go();
}

}  // namespace moetune
