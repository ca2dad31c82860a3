// Grouped linear maps of the same rows, one or several, as one: outputs lie side by side, and so do the weights of each
// expert, so that forward and input gradient are one product each.
//
//   GroupedMaps gate_and_up({&gate, &up});
//   const GroupedMaps::Dense w = gate_and_up.dense(chunk, random, scratch, counters);  // dequantised once a pass
//   at::Tensor y_XO = gate_and_up.forward(x_XI, w, chunk, token_X, random);  // O: the outputs of gate, then of up
//   InputGradient d = gate_and_up.input_gradient(dy_XO, w, chunk, token_X, random);
//   gate_and_up.add_gradients(dy_XO, x_XI, d, w, chunk, token_X, random);
//
// Adapters can be folded into that product, so that nothing is added to wide rows. With the R of all maps together, A
// their stacked A, B their B side by side as a block diagonal and s each map's scale, a chunk's experts become
//
//   M_e = | W_e [O, I]   B_e [O, R] |     low = x A^T,     y = [x | s low] M[:O]^T
//         | A_e [R, I]              |     d_low = s dy B,  dx = [dy | d_low] M[:, :I]
//                                         dA = d_low^T x,  dB = dy^T (s low)
//
// s is a factor of low, not of B: exact where it is a power of two, otherwise R numbers a row are rounded once more.
// The rank of each map is filled up with zeros to a multiple of kGroupedAlignment. It is done where LibTorch has a
// grouped kernel for what is computed (grouped_mm.h), widths suit it, every expert has an adapter or none, and no
// inputs are dropped; elsewhere each adapter adds its part.
//
// Weights that train lie apart, as do those held dense that are no neighbours: then each map is a product of its own.
#pragma once

#include <optional>
#include <vector>

#include "lora/grouped_linear.h"

namespace moetune {

class GroupedMaps {
 public:
  /// The maps outlive this.
  explicit GroupedMaps(std::vector<GroupedLinear*> maps);

  /// Dense weights of a chunk's experts.
  struct Dense {
    at::Tensor all_eOI;                 ///< of all maps; undefined where they lie apart
    std::vector<at::Tensor> apart_eOI;  ///< then of each
    at::Tensor folded_eOI;              ///< M, [e, O + R, I + R]; undefined where adapters are not folded
  };
  Dense dense(const ExpertChunk& chunk, const StepRandom& random, Scratch& scratch, DequantCounters& counters) const;

  /// R where adapters are folded in such a pass, otherwise 0. Rows x and dy may come with as many columns behind their
  /// own, for the numbers of adapters, which are overwritten; rows without are copied to where they have them.
  int64_t spare(const StepRandom& random) const;

  /// As GroupedLinear::forward(). x_XI: [X, I] or [X, I + spare()].
  at::Tensor forward(const at::Tensor& x_XI, const Dense& dense, const ExpertChunk& chunk, const at::Tensor& token_X,
                     const StepRandom& random, const at::Tensor& bias_weight_X1 = {}) const;

  struct InputGradient {
    at::Tensor dx_XI;
    std::vector<at::Tensor> d_low_XR;  ///< of each map, for add_gradients()
    at::Tensor d_low_all_XR;           ///< of all that have adapters, where they are folded
  };
  /// dy_XO: [X, O] or [X, O + spare()].
  InputGradient input_gradient(const at::Tensor& dy_XO, const Dense& dense, const ExpertChunk& chunk,
                               const at::Tensor& token_X, const StepRandom& random) const;
  /// Adds the gradients of what trains. x is read where needs_input(); `has_low`: its spare columns are as forward()
  /// left them.
  void add_gradients(const at::Tensor& dy_XO, const at::Tensor& x_XI, const InputGradient& of_input, const Dense& dense,
                     const ExpertChunk& chunk, const at::Tensor& token_X, const StepRandom& random,
                     const at::Tensor& bias_weight_X1 = {}, bool has_low = false);

  bool needs_input() const;
  /// O and I of all maps together, as held here.
  int64_t outputs() const { return num_outputs_; }
  int64_t inputs() const { return maps_.front()->inputs(); }
  int64_t scratch_elements_per_expert() const;
  /// Folds adapters wherever it can be done, or nowhere, for tests.
  void fold(bool always) { fold_ = always; }

 private:
  /// Whether passes without dropout fold.
  bool folds() const;
  /// R: ranks of all adapters together, filled up.
  int64_t rank() const;
  /// x with its spare columns: [X, I + R].
  at::Tensor with_spare(const at::Tensor& rows, int64_t columns) const;
  /// Writes s low to the spare columns.
  void fill_low(const at::Tensor& wide_XI, const Dense& dense, const ExpertChunk& chunk) const;
  void scale_parts(const at::Tensor& low_XR) const;
  /// Calls work(map, its outputs among the columns of `all_XO`) for each map.
  template <typename Work>
  void for_each_part(const at::Tensor& all_XO, const Work& work) const;
  /// Calls work(map, its first column among those of all adapters, its columns) for each map that has one.
  template <typename Work>
  void for_each_adapter(const Work& work) const;

  std::vector<GroupedLinear*> maps_;
  std::vector<int64_t> outputs_;  ///< of each map
  int64_t num_outputs_ = 0;
  std::optional<bool> fold_;
};

}  // namespace moetune
