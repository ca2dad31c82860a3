// What of the maps gets adapters or trains itself: which layers, and of stacks of experts which experts.
//
//   LayerChoice layers{.all = false, .ranges = {{0, 0}, {10, 20}}};
//   layers.holds(LayerId::block(12));                     // true
//   ExpertChoice experts{ExpertChoice::Kind::kTop, {}, 8};  // of each layer the eight with the greatest load
//
// The greatest load is that on the user's data (expert-specialised fine-tuning, Wang et al. 2024, ESFT-Token): what is
// chosen then is known once the data was routed.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "lora/layer_id.h"

namespace moetune {

/// first .. last, both among them.
struct NumberRange {
  int64_t first = 0, last = 0;
  bool holds(int64_t number) const { return number >= first && number <= last; }
  bool operator==(const NumberRange&) const = default;
};
/// "3", "10-20".
std::string to_string(const NumberRange& range);

struct LayerChoice {
  bool all = true;
  std::vector<NumberRange> ranges;  ///< of the trunk's layers, unless all
  bool mtp = false;                 ///< the MTP module's block too, unless all
  bool holds(LayerId layer) const;
  bool operator==(const LayerChoice&) const = default;
};

/// The experts of one stack that have adapters, or whose weights train.
struct StackExperts {
  std::vector<int64_t> listed = {};  ///< their numbers, in order; empty: all, or those that loads will choose
  int64_t top = 0;                   ///< how many loads will choose; 0: it is known which
  bool are_all() const { return listed.empty() && top == 0; }
  /// Wait for the choice.
  bool are_open() const { return top > 0; }
  /// How many they are, of a stack of `total`.
  int64_t count(int64_t total) const;
  /// Of them the most that any rank with `local` experts of the stack holds.
  int64_t most_of_rank(int64_t total, int64_t local) const;
  bool operator==(const StackExperts&) const = default;
};

struct ExpertChoice {
  enum class Kind {
    kAll,
    kListed,  ///< the same numbers in every layer
    kTop,     ///< those of each layer with the greatest load
  };
  Kind kind = Kind::kAll;
  std::vector<NumberRange> ranges;  ///< with kListed
  int64_t top = 0;                  ///< how many, with kTop
  /// The numbers listed, in order, each once.
  std::vector<int64_t> listed() const;
  StackExperts of_stack() const;
  bool operator==(const ExpertChoice&) const = default;
};
/// "all", "0, 3-5", "top 8".
std::string to_string(const ExpertChoice& choice);

/// Of chosen experts (in order; empty: all) those among first .. first + count - 1, numbered from `first`.
std::vector<int64_t> local_experts(const std::vector<int64_t>& chosen, int64_t first, int64_t count);

/// Chosen experts, in order, by the number of their layer.
using ExpertsOfLayers = std::map<int64_t, std::vector<int64_t>>;

/// The `count` greatest loads' places in order; of equal ones the lower.
std::vector<int64_t> greatest_loads(const std::vector<int64_t>& load_E, int64_t count);

}  // namespace moetune
