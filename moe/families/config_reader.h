// Typed access to a config.json, and the parts of it that families share; errors name file, key, value and what is
// allowed.
//
//   const ConfigReader top(object, "/models/DeepSeek-V3/config.json");
//   blueprint.width = top.integer("hidden_size", 1, kMostWidth);
//   blueprint.rotary = top.rotary({.dim = 64}, blueprint.max_positions);
//
// Both spellings are read: the old one (rope_theta, rope_scaling) and that of transformers 5 (rope_parameters).
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include <nlohmann/json_fwd.hpp>

#include "moe/blueprint.h"

namespace moetune {

// What no model comes near, and what keeps every product of sizes far from 2^63.
inline constexpr int64_t kMostLayers = 1 << 12, kMostWidth = 1 << 20, kMostFeatures = 1 << 24, kMostHeads = 1 << 16;
inline constexpr int64_t kMostVocabulary = 1 << 27;
inline constexpr int64_t kMostExperts = 32767;  ///< chosen experts are kept as 16-bit numbers

class ConfigReader {
 public:
  /// `object` must outlive the reader. UserError if it is no object.
  ConfigReader(const nlohmann::json& object, std::string place);

  /// Whether the key is there and not null; whether it is there at all.
  bool has(const char* key) const;
  bool names(const char* key) const;
  int64_t integer(const char* key, int64_t low, int64_t high = int64_t{1} << 40) const;
  int64_t integer_or(const char* key, int64_t otherwise, int64_t low, int64_t high = int64_t{1} << 40) const;
  /// Two keys for one thing: the number of the first that is there; UserError if they differ.
  int64_t integer_of_either(const char* key, const char* other, int64_t low, int64_t high) const;
  double number(const char* key) const;
  double number_or(const char* key, double otherwise) const;
  std::optional<double> optional_number(const char* key) const;
  /// The same, within [low, high].
  double number_within(const char* key, double otherwise, double low, double high) const;
  bool flag_or(const char* key, bool otherwise) const;
  std::string text_or(const char* key, const std::string& otherwise) const;
  std::vector<int64_t> integers(const char* key, int64_t low, int64_t high) const;
  std::vector<std::string> texts(const char* key) const;
  const nlohmann::json& at(const char* key) const;
  /// The object under `key`, its place named in messages.
  ConfigReader object(const char* key) const;

  /// UserError unless the key is absent or says `allowed`.
  void only(const char* key, const std::string& allowed) const;
  /// UserError with `problem` behind the key unless the flag is absent or as it is allowed.
  void only(const char* key, bool allowed, const std::string& problem) const;
  /// UserError for a key that is absent, where readers of the format differ in what that means.
  void require(std::initializer_list<const char*> keys) const;
  [[noreturn]] void fail(const std::string& key, const std::string& problem) const;
  const std::string& place() const { return place_; }

  /// vocab, width, norm_eps, initializer_range, tied_embeddings, max_positions, fp8_blocks: keys that all families
  /// have; what no family computes (another activation than silu, dropout in attention) is refused. `mxfp4`: the
  /// family's experts may lie in MXFP4 blocks, which sets mxfp4_experts.
  void read_common(Blueprint& blueprint, bool mxfp4 = false) const;
  /// Experts, top_k and what they must keep to each other. Keys of the number of experts: two spellings.
  void read_router_sizes(RouterSpec& router, const char* key, const char* other) const;
  /// Groups of experts of which some are open to a token (n_group, topk_group): all where there is one.
  void read_router_groups(RouterSpec& router, RouterSpec::Choice choice) const;
  /// Grouped-query attention: heads, kv_heads, widths of a head, its scale; rotary.dim and the scaling of its angles.
  /// `rotated`: the part of a head's features that turns where partial_rotary_factor does not say.
  AttentionSpec read_grouped_query(RotarySpec& rotary, int64_t max_positions, double rotated = 1.0) const;
  /// num_hidden_layers, bounded.
  int64_t num_layers() const;
  /// Gives the blueprint its layers, each like `layer`, the first `first_k_dense_replace` (or those that
  /// mlp_layer_types calls dense) with a dense MLP of intermediate_size.
  void add_layers(Blueprint& blueprint, const LayerSpec& layer, int64_t dense_otherwise) const;
  /// num_nextn_predict_layers or num_mtp_layers; the module's block is `layer`.
  void read_mtp(Blueprint& blueprint, const LayerSpec& layer) const;
  /// Angles; `base` has dim and layout and, where the family has another, theta. partial_rotary_factor must be 1 unless
  /// `partial`: then the caller has put it into dim.
  RotarySpec rotary(RotarySpec base, int64_t max_positions, bool partial = false) const;
  /// The part of a head's features that turns, at the top or beside the scaling of the angles.
  double partial_rotary_factor(double otherwise) const;
  /// Whether the weights are FP8 in blocks; UserError for any other quantisation.
  bool fp8_blocks() const;
  /// Bounds that the sizes together must keep. `experts_key`: the family's key of the number of experts.
  void check_size(const Blueprint& blueprint, const char* experts_key) const;

 private:
  const nlohmann::json& object_;
  std::string place_;
};

/// A text of a file between quotes, its control characters escaped.
std::string single_quoted(const std::string& text);

}  // namespace moetune
