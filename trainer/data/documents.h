// The documents that a run trains or evaluates on: token ids and labels, all in host memory.
//
//   Documents documents = Documents::is_tokenised_jsonl(path) ? Documents::from_jsonl(path, vocab_size)
//                                                             : Documents::from_cache(cache_path, vocab_size);
//   const int64_t num_cut = documents.truncate(max_tokens);
//   const Document document = documents.doc(7);   // document.tokens[t], document.labels[t]
//
// Labels are unshifted: labels[t] is what position t holds when it is to be learnt and kNotTrained otherwise. Logits at
// position t predict labels[t + 1], so labels[0] is never a target. A document without any target is an error: it would
// be paid for and teach nothing, and nearly always shows a mistake in the data.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

namespace moetune {

/// The label of a position whose token is not trained; the ignore index of transformers.
inline constexpr std::int32_t kNotTrained = -100;

/// One document: views into the Documents that it came from, of equal length.
struct Document {
  std::span<const std::int32_t> tokens;
  std::span<const std::int32_t> labels;
};

class Documents {
 public:
  /// Reads lines {"input_ids": [...], "labels": [...]}: both lists present, equally long, ids within
  /// 0 .. vocab_size-1, labels likewise or -100. `attention_mask` may be there if it is 1 throughout, `position_ids` if
  /// they count from 0, and what `ignored_keys` names; nothing else. Blank lines are skipped. A line may have 64 MiB.
  /// scripts/prepare/tokenised.py accepts the same.
  /// Throws one UserError that counts every kind of mistake of the whole file and names the first lines of each.
  static Documents from_jsonl(const std::string& path, std::int64_t vocab_size,
                              const std::vector<std::string>& ignored_keys = {});

  /// Reads a token cache: a safetensors file with `tokens` I32 [N], `labels` I32 [N] and `offsets` I64 [documents + 1],
  /// where document i is the range offsets[i] .. offsets[i + 1]. Throws UserError as from_jsonl does.
  static Documents from_cache(const std::string& path, std::int64_t vocab_size);

  /// Whether the first line of a JSONL file that is not blank is an object with the key "input_ids": such a file needs
  /// no tokenizer. Looks at the first 64 MiB at most. Throws UserError when the file cannot be read.
  static bool is_tokenised_jsonl(const std::string& path);

  /// Takes over the documents tokens[offsets[i] .. offsets[i + 1]] of a source called `path` in messages. `lines` holds
  /// the 1-based line of each document, or is empty where the source has no lines. Checks ids, labels and targets as
  /// above and throws UserError.
  Documents(std::string path, std::int64_t vocab_size, std::vector<std::int32_t> tokens,
            std::vector<std::int32_t> labels, std::vector<std::int64_t> offsets, std::vector<std::int64_t> lines);

  std::int64_t size() const { return static_cast<std::int64_t>(lengths_.size()); }
  /// Tokens of all documents together.
  std::int64_t num_tokens() const { return num_tokens_; }
  /// Tokens of document i.
  std::int64_t length(std::int64_t i) const { return lengths_[i]; }
  /// Positions t of document i with labels[t + 1] to be learnt: those that the loss counts.
  std::int64_t num_targets(std::int64_t i) const { return num_targets_[i]; }
  /// Positions t of document i with labels[t + 2] to be learnt: those that a multi-token prediction module's loss
  /// counts.
  std::int64_t num_mtp_targets(std::int64_t i) const { return num_mtp_targets_[i]; }
  /// Views that stay valid until truncate() or the end of this object.
  Document doc(std::int64_t i) const;
  /// How to find document i by hand: "document 7" (from 0), or "document 7 (line 9)" where the source has lines.
  std::string name_of(std::int64_t i) const;

  /// Cuts every document longer than max_tokens to its first max_tokens tokens and returns how many were cut. Throws
  /// UserError, and cuts none, when a document would lose its last target.
  std::int64_t truncate(std::int64_t max_tokens);

 private:
  void count_targets(std::int64_t i);

  std::string path_;
  std::vector<std::int32_t> tokens_, labels_;
  std::vector<std::int64_t> begins_, lengths_, lines_, num_targets_, num_mtp_targets_;
  std::int64_t num_tokens_ = 0;
};

}  // namespace moetune
