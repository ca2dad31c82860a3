// Where tokens lie: a token cache mapped into memory, or vectors. Documents are views into it.
//
//   const auto source = TokenSource::of_cache(".moetune/0123456789abcdef.safetensors", "train.jsonl");
//   source->tokens[source->offsets[7]];       // the first token of document 7
//   source->let_go();                         // its pages may leave memory; they come back when they are touched
//
// A mapped cache costs a rank address space alone: its pages belong to the system's page cache, which all ranks of a
// host share and which gives them up when memory is short. A cache is written beside its place and renamed, never
// changed, so what is mapped stays as it is.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

namespace moetune {

class TokenSource {
 public:
  /// Maps a token cache: a safetensors file with `tokens` I32 [N], `labels` I32 [N], `offsets` I64 [documents + 1] and,
  /// where targets count differently, `weights` F32 [N]. `name` is what messages call it. UserError for what is no such
  /// file, or damaged.
  static std::shared_ptr<const TokenSource> of_cache(const std::string& path, std::string name);

  /// `lines`: the 1-based line of each document, or empty; `weights`: one a token, or empty.
  static std::shared_ptr<const TokenSource> of_vectors(std::string name, std::vector<std::int32_t> tokens,
                                                       std::vector<std::int32_t> labels,
                                                       std::vector<std::int64_t> offsets,
                                                       std::vector<std::int64_t> lines, std::vector<float> weights);

  std::int64_t size() const { return static_cast<std::int64_t>(offsets.size()) - 1; }  ///< documents, at least 1
  /// Tells the system that nothing of a mapped file is needed now. Views stay valid.
  void let_go() const;

  std::string name;
  std::span<const std::int32_t> tokens, labels;
  std::span<const float> weights;         ///< empty: all 1
  std::span<const std::int64_t> offsets;  ///< document i is tokens[offsets[i]] .. tokens[offsets[i + 1] - 1]
  std::span<const std::int64_t> lines;    ///< empty where the source has none

 private:
  struct Memory;
  explicit TokenSource(std::string name);
  void require_sound() const;

  std::shared_ptr<Memory> memory_;
};

}  // namespace moetune
