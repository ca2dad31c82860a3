// The documents that a run trains or evaluates on: token ids, labels and, where targets count differently, weights.
// Those of a token cache stay in the mapped file (token_source.h); a document costs a rank 4 bytes here.
//
//   Documents documents = Documents::is_tokenised_jsonl(path) ? Documents::from_jsonl(path, vocab_size)
//                                                             : Documents::from_cache(cache_path, vocab_size);
//   const int64_t num_cut = documents.truncate(max_tokens);
//   const Document document = documents.doc(7);   // document.tokens[t], document.labels[t]
//
//   Documents all = Documents::joined("data.train", {first, second}, {1.0, 2.5});   // of the second, 2.5 an epoch
//   const Documents held_out = all.split_off(0.01, seed);
//
// Labels are unshifted: labels[t] is what position t holds when it is to be learnt and kNotTrained otherwise. Logits at
// position t predict labels[t + 1], so labels[0] is never a target. weights[t] is how much label t counts in the loss;
// a label of weight 0 is no target. A document without any target is an error: it would be paid for and teach nothing,
// and nearly always shows a mistake in the data.
#pragma once

#include <cstdint>
#include <limits>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "trainer/data/token_source.h"

namespace moetune {

/// The label of a position whose token is not trained; the ignore index of transformers.
inline constexpr std::int32_t kNotTrained = -100;

/// One document: views into the Documents that it came from, of equal length.
struct Document {
  std::span<const std::int32_t> tokens;
  std::span<const std::int32_t> labels;
  std::span<const float> weights = {};  ///< empty: each label counts 1

  float weight(size_t t) const { return weights.empty() ? 1.0F : weights[t]; }
  /// Whether the prediction of position t counts in the loss.
  bool is_target(size_t t) const { return labels[t] != kNotTrained && weight(t) > 0.0F; }
};

/// Neighbouring documents of which an epoch takes equally many.
struct Share {
  std::int64_t begin = 0, end = 0;  ///< documents begin .. end - 1
  double weight = 1.0;              ///< how often an epoch takes each of them
};

class Documents {
 public:
  /// Reads lines {"input_ids": [...], "labels": [...]}: both lists present, equally long, ids within
  /// 0 .. vocab_size-1, labels likewise or -100. `attention_mask` may be there if it is 1 throughout, `position_ids` if
  /// they count from 0, `id`, what holds nothing (null, "", [], {}) and what `ignored_keys` names; nothing else. Labels
  /// that are shifted are refused. Blank lines are skipped. A line may have 64 MiB.
  /// scripts/prepare/tokenised.py accepts the same.
  /// Throws one UserError that counts every kind of mistake of the whole file and names the first lines of each.
  static Documents from_jsonl(const std::string& path, std::int64_t vocab_size,
                              const std::vector<std::string>& ignored_keys = {});

  /// Maps a token cache (TokenSource::of_cache) and walks it once. Messages call it `name`, or by its path. Throws
  /// UserError as from_jsonl does.
  static Documents from_cache(const std::string& path, std::int64_t vocab_size, const std::string& name = "");

  /// The documents of all parts in their order, as one; messages call the whole `name`. Of a part an epoch takes each
  /// document weights[part] times.
  static Documents joined(const std::string& name, std::vector<Documents> parts, const std::vector<double>& weights);

  /// Whether the first line of a JSONL file that is not blank is an object with the key "input_ids" and none that
  /// makes it a conversation: such a file needs no tokenizer. Looks at the first 64 MiB at most. Throws UserError when
  /// the file cannot be read.
  static bool is_tokenised_jsonl(const std::string& path);

  /// Takes over the documents tokens[offsets[i] .. offsets[i + 1]] of a source called `path` in messages. `lines` holds
  /// the 1-based line of each document, or is empty where the source has no lines; `weights` one a token, or nothing.
  /// Checks ids, labels and targets as above and throws UserError.
  Documents(std::string path, std::int64_t vocab_size, std::vector<std::int32_t> tokens,
            std::vector<std::int32_t> labels, std::vector<std::int64_t> offsets, std::vector<std::int64_t> lines,
            std::vector<float> weights = {});
  /// All documents of a source, checked likewise.
  Documents(std::shared_ptr<const TokenSource> source, std::int64_t vocab_size);

  std::int64_t size() const { return static_cast<std::int64_t>(num_targets_.size()); }
  /// Tokens of all documents together.
  std::int64_t num_tokens() const { return num_tokens_; }
  /// Tokens of document i.
  std::int64_t length(std::int64_t i) const;
  /// Positions t of document i that predict a target, label t + 1: those that the loss counts.
  std::int64_t num_targets(std::int64_t i) const { return num_targets_[i]; }
  /// Positions t of document i with labels[t + 2] a target: those that a multi-token prediction module's loss counts.
  std::int64_t num_mtp_targets(std::int64_t i) const { return num_targets_[i] - (second_is_target_[i] ? 1 : 0); }
  /// Whether some source has weights.
  bool weighted() const;
  /// Views that stay valid until truncate() or as long as a source lives.
  Document doc(std::int64_t i) const;
  /// How to find document i by hand: "document 7" (from 0), or "document 7 (line 9)" where the source has lines; of
  /// several sources "document 7 of b.jsonl".
  std::string name_of(std::int64_t i) const;
  /// In order; together all documents.
  std::vector<Share> shares() const;

  /// Cuts every document longer than max_tokens to its first max_tokens tokens and returns how many were cut. Throws
  /// UserError, and cuts none, when a document would lose its last target.
  std::int64_t truncate(std::int64_t max_tokens);

  /// Takes the nearest number of documents to `part` of all away, at least one and not all, and returns them, in their
  /// order, each to be taken once: those that come first in an order drawn from the seed. The same for the same number
  /// of documents and seed. UserError where there is but one document.
  Documents split_off(double part, std::uint64_t seed);
  /// How many that are of `all`, two or more.
  static std::int64_t num_split_off(double part, std::int64_t all);

  /// Tells the system that no document is needed now; views stay valid.
  void let_go() const;

 private:
  struct Part {
    std::shared_ptr<const TokenSource> source;
    std::int64_t first = 0;  ///< number of the source's first document among those of all sources
    double weight = 1.0;
  };
  /// A document's source and its number there.
  struct Place {
    const Part* part;
    std::int64_t document;
  };

  Documents() = default;
  Place place(std::int64_t i) const;
  void count_targets(std::int64_t i, const Document& document);
  /// Of these documents, ascending, those that are here by their place in `indices`.
  Documents chosen(const std::vector<std::int64_t>& indices) const;

  std::string name_;
  std::vector<Part> parts_;
  std::vector<std::uint32_t> chosen_;  ///< numbers among those of all sources, ascending; empty: all
  std::vector<std::uint32_t> num_targets_;
  std::vector<bool> second_is_target_;  ///< labels[1], the one that an MTP module does not predict
  std::int64_t max_tokens_ = std::numeric_limits<std::int64_t>::max();
  std::int64_t num_tokens_ = 0;
};

}  // namespace moetune
