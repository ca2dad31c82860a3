// What a block keeps of its way down for its way up, where it need not compute it again: memory for time. Each level
// holds what those before it hold.
//
//   Mixed mixed = block.mix(x_TD, slice, angles, {}, false, pass, &kept);        // way down: takes what is to be kept
//   Mixed again = block.mix(x_TD, slice, angles, choice, false, pass, &kept);    // way up: computes the rest
//
// By the seconds that a byte saves, for DeepSeek-V3 in documents of 4,096 tokens: what kAttention keeps, 47 KB a token,
// saves a product with the largest map of the block and that of queries and keys; kExperts, 80 KB more and 14 KB for
// each copy of the row on another rank, a grouped product and the rows' second way to their experts; kAll, 200 KB more,
// the other maps and norms.
#pragma once

#include <torch/types.h>

#include <cstdint>
#include <string>
#include <vector>

namespace moetune {

enum class Keep {
  kNothing,    ///< its input alone
  kAttention,  ///< KeptMixing
  kExperts,    ///< the routed experts' rows and activations too (KeptExperts)
  kAll,        ///< the graph of all of it
};

/// What attention gives, and what its kernel's backward pass takes beside it. Empty where the kernel is not
/// ragged_attention(): others compute it again.
struct KeptAttention {
  at::Tensor y_UHA;
  std::vector<at::Tensor> lse;  ///< of each piece of the slice
  bool dense = false;           ///< which kernel long documents went through, and go through again
};

/// Of mixing one slice. Empty until the way down has filled it.
struct KeptMixing {
  at::Tensor residual_TD;  ///< x + attention
  KeptAttention attention;
};

/// Which blocks keep what: the last this many at least that, so that `attention` counts those that keep more too.
struct KeptBlocks {
  int64_t attention = 0, experts = 0, all = 0;

  static KeptBlocks whole(int64_t blocks) { return {blocks, blocks, blocks}; }
  /// The ladder that `train.keep: auto` climbs: one level after the other, each from the last block to the first of
  /// `blocks`. 0 <= steps <= most_steps(blocks).
  static KeptBlocks after(int64_t steps, int64_t blocks);
  static int64_t most_steps(int64_t blocks) { return 3 * blocks; }
  int64_t steps() const { return attention + experts + all; }
  /// What the block keeps behind which `later` more come.
  Keep of(int64_t later) const;
  bool operator==(const KeptBlocks&) const = default;
};
/// "all of the last 2, experts of 5, attention of 9 blocks"; "nothing".
std::string to_string(const KeptBlocks& kept);

}  // namespace moetune
