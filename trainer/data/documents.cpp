#include "trainer/data/documents.h"

#include <algorithm>
#include <numeric>
#include <utility>

#include "parallel/base/error.h"

namespace moetune {
namespace {

// How many places a message names before it only counts.
constexpr size_t kNamedPlaces = 5;

bool is_trained(std::int32_t label) { return label != kNotTrained; }

// "3 of 9 documents: document 0 (line 1), document 4 (line 5), ..."
std::string places(const Documents& documents, const std::vector<std::int64_t>& which) {
  std::string text = str(which.size(), " of ", documents.size(), " documents: ");
  for (size_t i = 0; i < std::min(which.size(), kNamedPlaces); ++i) {
    text += (i ? ", " : "") + documents.name_of(which[i]);
  }
  return which.size() > kNamedPlaces ? text + ", ..." : text;
}

}  // namespace

Documents::Documents(std::string path, std::int64_t vocab_size, std::vector<std::int32_t> tokens,
                     std::vector<std::int32_t> labels, std::vector<std::int64_t> offsets,
                     std::vector<std::int64_t> lines)
    : path_(std::move(path)), tokens_(std::move(tokens)), labels_(std::move(labels)), lines_(std::move(lines)) {
  if (labels_.size() != tokens_.size()) {
    throw UserError(
        str(path_, ": ", tokens_.size(), " tokens but ", labels_.size(), " labels; each token has one label"));
  }
  if (offsets.size() < 2) throw UserError(path_ + ": holds no documents; at least one is needed");
  if (offsets.front() != 0 || offsets.back() != static_cast<std::int64_t>(tokens_.size()) ||
      !std::is_sorted(offsets.begin(), offsets.end())) {
    throw UserError(str(path_, ": the offsets of the documents must rise from 0 to the number of tokens, ",
                        tokens_.size(), "; they begin with ", offsets.front(), " and end with ", offsets.back(),
                        ". The file is damaged: make it anew"));
  }
  begins_.assign(offsets.begin(), offsets.end() - 1);
  lengths_.resize(begins_.size());
  for (size_t i = 0; i < lengths_.size(); ++i) lengths_[i] = offsets[i + 1] - offsets[i];
  MT_CHECK(lines_.empty() || lines_.size() == lengths_.size(), lines_.size(), " lines, ", lengths_.size(),
           " documents");
  num_tokens_ = static_cast<std::int64_t>(tokens_.size());
  num_targets_.resize(lengths_.size());
  num_mtp_targets_.resize(lengths_.size());

  std::vector<std::int64_t> outside, masked;
  for (std::int64_t i = 0; i < size(); ++i) {
    const auto [ids, document_labels] = doc(i);
    const auto fits = [&](std::int32_t id) { return id >= 0 && id < vocab_size; };
    if (!std::all_of(ids.begin(), ids.end(), fits) ||
        !std::all_of(document_labels.begin(), document_labels.end(),
                     [&](std::int32_t label) { return !is_trained(label) || fits(label); })) {
      outside.push_back(i);
    }
    count_targets(i);
    if (num_targets_[i] == 0) masked.push_back(i);
  }
  std::string faults;
  if (!outside.empty()) {
    faults += str("\n  ids outside the vocabulary of the model in ", places(*this, outside), ". Allowed are 0 to ",
                  vocab_size - 1, ", and ", kNotTrained, " as a label; tokenise with the model's own tokenizer");
  }
  if (!masked.empty()) {
    faults += str("\n  no target in ", places(*this, masked), ". A document needs a label other than ", kNotTrained,
                  " after its first position; remove these documents or unmask what is to be learnt");
  }
  if (!faults.empty()) throw UserError(path_ + ": these documents cannot be trained on:" + faults);
}

void Documents::count_targets(std::int64_t i) {
  const auto labels = doc(i).labels;
  const auto count_from = [&](size_t first) {
    return first >= labels.size() ? 0 : std::count_if(labels.begin() + first, labels.end(), is_trained);
  };
  num_targets_[i] = count_from(1);
  num_mtp_targets_[i] = count_from(2);
}

Document Documents::doc(std::int64_t i) const {
  return {{tokens_.data() + begins_[i], static_cast<size_t>(lengths_[i])},
          {labels_.data() + begins_[i], static_cast<size_t>(lengths_[i])}};
}

std::string Documents::name_of(std::int64_t i) const {
  return lines_.empty() ? str("document ", i) : str("document ", i, " (line ", lines_[i], ")");
}

std::int64_t Documents::truncate(std::int64_t max_tokens) {
  std::vector<std::int64_t> longer, emptied;
  for (std::int64_t i = 0; i < size(); ++i) {
    if (lengths_[i] <= max_tokens) continue;
    longer.push_back(i);
    const auto labels = doc(i).labels.first(static_cast<size_t>(max_tokens));
    if (labels.empty() || std::none_of(labels.begin() + 1, labels.end(), is_trained)) emptied.push_back(i);
  }
  if (!emptied.empty()) {
    throw UserError(str(path_, ": cutting to max_tokens ", max_tokens, " removes every target of ",
                        places(*this, emptied), ". Raise data.max_tokens, or shorten or remove these documents"));
  }
  for (std::int64_t i : longer) {
    num_tokens_ -= lengths_[i] - max_tokens;
    lengths_[i] = max_tokens;
    count_targets(i);
  }
  return static_cast<std::int64_t>(longer.size());
}

}  // namespace moetune
