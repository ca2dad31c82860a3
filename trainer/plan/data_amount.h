// How much there is to train on, where a plan may not or need not read the data: documents and their lengths.
//
//   DataAmount data = DataAmount::of_equal(50000, 1024);
//   DataAmount data = DataAmount::of_file("data/.moetune/2f0c....safetensors");     // prepared tokens, or a histogram
//   data.packed(4096).tokens_a_sequence;
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "trainer/plan/seen_keys.h"
#include "trainer/recipe/recipe.h"

namespace moetune {

/// What an epoch packs into sequences.
struct PackedData {
  int64_t sequences = 0;
  double tokens_a_sequence = 0.0;
  SeenKeys keys;  ///< by its tokens
  int64_t longest = 0;
  /// Tokens of sequences in an order that steps may take them in: of all documents, or of a sample.
  std::vector<int64_t> drawn;

  /// Tokens of the fullest of so many ranks in the fullest step of `batch` sequences of them, dealt out as
  /// trainer/data/batches.h does. The longest document counts once where the sample lacks it.
  int64_t fullest_rank(int64_t batch, int64_t ranks) const;
};

class DataAmount {
 public:
  static DataAmount of_equal(int64_t documents, int64_t tokens);
  /// Prepared tokens (`moetune prepare` names the file), a tokenised JSONL file, or JSON {"length": documents, ...}.
  /// Throws UserError.
  static DataAmount of_file(const std::string& path);
  /// Of the recipe's data.train where these files hold tokens, nothing where they hold text or are not there.
  static std::vector<LengthCount> lengths_of(const Recipe& recipe);

  explicit DataAmount(std::vector<LengthCount> lengths, std::string source);

  /// The rest when `part` of the documents, of each length alike, is held out as data.eval_split says: the nearest
  /// number, at least one and not all. Throws UserError of a single document.
  DataAmount without_held_out(double part) const;

  int64_t documents() const;
  int64_t tokens() const;
  /// Documents cut to `max_tokens`, and packed as trainer/data/batches.h does, or one a sequence.
  PackedData packed(int64_t max_tokens, bool packing) const;
  const std::string& source() const { return source_; }  ///< in words

 private:
  std::vector<LengthCount> lengths_;
  std::string source_;
};

}  // namespace moetune
