// The gated activation of experts' MLPs with the routing weight w of a row, and its gradients. With g and u the gate
// and up of a feature:
//
//   h  = w a,   a = silu(g) u                      kSwiglu (Shazeer 2020)
//               a = (u' + 1) g' sigmoid(alpha g')  kClampedSwiglu (gpt-oss; transformers' GptOssExperts),
//                   g' = min(g, limit), u' = max(min(u, limit), -limit)
//   d a = w d h,   d w = <d h, a>;   a number that was clamped gets no gradient
//
//   at::Tensor h_XF = gated_activation(form, gate_up_X2F, weight_X);
//   ...
//   ActivationGradients d = gated_activation_backward(form, gate_up_X2F, weight_X, d_h_XF, {.keep_gate_up = true});
//
// On a GPU each is one kernel, which reads gate and up once and computes in fp32 (fp64 for fp64), sums of a row too;
// elsewhere plain operations of LibTorch, which are also the reference.
#pragma once

#include <torch/types.h>

#include "moe/blueprint.h"

namespace moetune {

/// What becomes of gate and up, and how they lie in a row of 2F numbers.
struct ActivationForm {
  ExpertSpec::Activation activation = ExpertSpec::Activation::kSwiglu;
  double limit = 0.0, alpha = 0.0;  ///< of kClampedSwiglu
  bool alternating = false;         ///< gate and up of a feature are neighbours; false: F gates, then F ups
};

/// [X, F], or with `columns` above F [X, columns], of which the first F are written. weight_X undefined: 1. Rows of
/// gate_up may lie apart.
at::Tensor gated_activation(const ActivationForm& form, const at::Tensor& gate_up_X2F, const at::Tensor& weight_X,
                            int64_t columns = 0);

/// What the backward pass is to leave alone and to make besides.
struct ActivationBackward {
  bool keep_gate_up = false;                          ///< false: d gate and d up may take the memory of gate and up
  bool hidden = false;                                ///< h again
  int64_t d_gate_up_columns = 0, hidden_columns = 0;  ///< as `columns` of gated_activation()
};

struct ActivationGradients {
  at::Tensor d_gate_up_X2F;
  at::Tensor d_weight_X;  ///< in the dtype of d_h; undefined without a weight
  at::Tensor hidden_XF;   ///< where it was wanted; may take the memory of d_h
};

/// d_h_XF may be overwritten.
ActivationGradients gated_activation_backward(const ActivationForm& form, const at::Tensor& gate_up_X2F,
                                              const at::Tensor& weight_X, const at::Tensor& d_h_XF,
                                              const ActivationBackward& options);

}  // namespace moetune
