// The part of a model that a stage of a pipeline holds: a run of the trunk's blocks; the first stage has the embedding
// too, the last the turn and the MTP module.
//
//   const std::vector<Stage> stages = stages_of({30, 31});   // blocks of each
//   stages[1].holds(blueprint.turn());                        // true
//   for (const LayerId layer : stages[1].blocks(blueprint, with_mtp)) ...
#pragma once

#include <vector>

#include "moe/blueprint.h"

namespace moetune {

class Stage {
 public:
  /// A model that is not cut.
  static Stage whole(const Blueprint& blueprint) { return {0, blueprint.num_layers(), blueprint.num_layers()}; }
  /// Blocks first .. end - 1 of a trunk of `num_blocks`; at least one.
  Stage(int64_t first, int64_t end, int64_t num_blocks) : first_(first), end_(end), num_blocks_(num_blocks) {}

  bool is_first() const { return first_ == 0; }
  bool is_last() const { return end_ == num_blocks_; }
  bool is_whole() const { return is_first() && is_last(); }
  LayerId first_block() const { return LayerId::block(first_); }
  /// Of the trunk.
  int64_t num_blocks() const { return end_ - first_; }
  bool holds(LayerId layer) const;
  /// The first stage has the embedding, and the last too where what ends the model uses it.
  bool has_embedding(const Blueprint& blueprint, bool with_mtp) const;
  /// The blocks here from the first to the last; `with_mtp`: on the last stage the MTP module's behind them.
  std::vector<LayerId> blocks(const Blueprint& blueprint, bool with_mtp) const;
  bool operator==(const Stage&) const = default;

 private:
  int64_t first_, end_, num_blocks_;
};

/// Whether what ends a model uses its embedding: a head that is tied to it, the MTP module.
bool end_uses_embedding(const Blueprint& blueprint, bool with_mtp);

/// The stages of a trunk of which each holds so many blocks.
std::vector<Stage> stages_of(const std::vector<int64_t>& blocks);

/// "embedding, layers 0 to 29", "layers 30 to 60, head", "layer 7".
std::string to_string(const Stage& stage);

}  // namespace moetune
