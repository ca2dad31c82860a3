// DeepSeek-V3's router (report section 2.1.2): sigmoid scores, a correction bias for the choice alone, group-limited
// top-k.
//
//   at::Tensor score_TE = router.scores(x_TD);                    // differentiable, fp32
//   at::Tensor expert_TK = router.choose(score_TE);               // once a step, on the way down
//   at::Tensor weight_TK = router.weights(score_TE, expert_TK);   // differentiable in the scores, not in the bias
#pragma once

#include <torch/types.h>

#include "moe/attention/slice.h"
#include "moe/blueprint.h"
#include "parallel/comm/tensor_axis.h"

namespace moetune {

class Router {
 public:
  /// weight_ED in any float dtype, bias_E fp32 (fp64 in proofs).
  Router(const RouterSpec& spec, at::Tensor weight_ED, at::Tensor bias_E, const TensorAxis& axis = {})
      : spec_(spec), weight_ED_(weight_ED), bias_E_(bias_E), axis_(axis) {}

  /// sigmoid(x W^T), computed in fp32 (fp64 for fp64 input): [T, E].
  at::Tensor scores(const at::Tensor& x_TD) const;
  /// Experts of each token, int64 [T, K]: the best K of score + bias within the best groups, a group's score being the
  /// sum of its two best. Ties go to the lower number.
  at::Tensor choose(const at::Tensor& score_TE) const;
  /// Scores of the chosen experts, normalised to sum 1 where the model says so, times its scaling factor: [T, K]. A
  /// choice of E (a row of padding) has some weight that nobody reads.
  at::Tensor weights(const at::Tensor& score_TE, const at::Tensor& expert_TK) const;
  /// Sequence-wise balance loss (report eq. 17-20) summed over the slice's documents: sum_i f_i P_i of each, with
  /// f_i = E / (K T) * #{t: i in top-K of the plain scores} and P_i = mean_t s_it / sum_j s_jt over a document of T
  /// tokens. A scalar, differentiable through P alone. On a tensor axis f is that of whole documents and P this rank's
  /// part of the sum, so that the ranks' losses add up. Collective over the axis.
  at::Tensor balance_loss(const at::Tensor& score_TE, const Slice& slice) const;

  const RouterSpec& spec() const { return spec_; }
  const at::Tensor& bias() const { return bias_E_; }
  const at::Tensor& weight() const { return weight_ED_; }
  /// Moves the bias by rate * sign(mean load - load_i) (report section 2.1.2). `load_E`: tokens of each expert over the
  /// whole step.
  void update_bias(const at::Tensor& load_E, double rate);

 private:
  RouterSpec spec_;
  at::Tensor weight_ED_;
  at::Tensor bias_E_;
  TensorAxis axis_;
};

}  // namespace moetune
