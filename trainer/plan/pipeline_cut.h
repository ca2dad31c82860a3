// Where a row of blocks is cut into the stages of a pipeline: by what they compute, and where weights train, by what
// their optimizer leaves exposed.
//
//   const std::vector<int64_t> blocks = cut_pipeline(load, /*stages=*/4);   // of each stage
//
// Of P stages and G groups of documents a step takes
//
//   (1 + (P - 1) / G) max C_s + max E_s
//
// C_s: what stage s computes on all groups, both ways; the slowest sets the pace, P - 1 turns are the bubble.
// E_s: what the first group waits for stage s's updates. Gradients of all layers are complete, and their norm is known,
// at the end of a step only. Then AdamW begins on every stage, from its lowest layer up, and the next step's first
// group goes down meanwhile, layer by layer as their updates are done. What the updates of stage s hide under is thus
// that group's way through all stages before it, and through its own layers below the one in question:
//
//   E_s = max over layers l of s:  U_s(l) - D(l)
//
// with U_s(l) the updates of the stage up to l, and D(l) the way down of one group through all layers of the model
// below l, neither less than 0. Nothing hides the first stage's lowest layer. A first group that is late is late
// wherever the slowest stage stands, and so are all behind it; the later of two delays contains the earlier one, which
// is why the greatest counts and not their sum.
//
// Documents are as long as they may be, steps as full; ways down that take weights from elsewhere take no longer.
#pragma once

#include <cstdint>
#include <vector>

namespace moetune {

/// What blocks bring to the stage that holds them; times in any one unit.
struct PipelineLoad {
  std::vector<double> work;       ///< by block: of all groups, both ways; the last with what stands behind it
  std::vector<double> down;       ///< by block: of one group, down
  std::vector<double> update;     ///< by block, of a rank's share; empty: nothing is updated that would be waited for
  double first_update = 0.0;      ///< of the embedding
  double last_update = 0.0;       ///< of what stands behind the last block
  bool ends_share_first = false;  ///< the last stage updates a copy of the embedding too
  int64_t groups = 1;

  std::vector<double> bytes;  ///< by block: of a rank's device, weights and gradients; with `update`
  double first_bytes = 0.0, last_bytes = 0.0;
  double input_bytes = 0.0;        ///< of a block and group, kept from down to up
  std::vector<int64_t> in_flight;  ///< by stage, groups whose inputs are kept at a time
};

/// The blocks of each of `stages` stages, none empty, whose step takes least; of equal ones that with the least sum of
/// squares of the stages' work. No stage holds more of `bytes` and inputs than the fullest of cut_by_cost(work), so
/// that what fits when products alone are weighed, fits.
std::vector<int64_t> cut_pipeline(const PipelineLoad& load, int64_t stages);

/// Cuts a row of items into `parts` runs, none empty: the sizes that make the dearest run the cheapest; of such cuts
/// the one with the least sum of squares.
std::vector<int64_t> cut_by_cost(const std::vector<double>& costs, int64_t parts);

}  // namespace moetune
