// Which experts a token goes to and how much each counts; every step a value of RouterSpec (moe/blueprint.h).
//
//   at::Tensor score_TE = router.scores(x_TD);                    // differentiable, fp32
//   at::Tensor expert_TK = router.choose(score_TE);               // once a step, on the way down
//   at::Tensor weight_TK = router.weights(score_TE, expert_TK);   // differentiable in the scores, not in the choice
//
// With logits l = x W^T (+ b) of a token, W adapted or trained like any other map where the recipe says so:
//
//   scores   kSigmoid          s_i = 1 / (1 + exp(-l_i))            DeepSeek-V3 report eq. 15, GLM-4.5, Llama-4
//            kSoftmax          s_i = exp(l_i) / sum_j exp(l_j)      DeepSeek-V2 report eq. 22, Mixtral, Qwen-MoE, OLMoE
//            kSoftmaxOfChosen  s_i = l_i                            gpt-oss (GptOssTopKRouter in transformers)
//   choice   c = s + correction bias, where there is one            V3 report eq. 16: for the choice alone
//            kGreedy           the best K of c
//            kGroupsByMax      the best K of c within the groups that have the greatest max c
//                                                                   V2 report section 2.2.2, device-limited routing
//            kGroupsByBestTwo  ... the greatest sum of their two best c
//                                                                   V3 report section 2.1.2, node-limited routing
//   weights  kSoftmaxOfChosen  w = softmax of the K logits
//            others            w = s of the K;  normalise: w / (sum w + eps);  then times scale
//            DeepSeek-V2's authors scale only what they do not normalise: its family says scale 1 there.
//
// Ties go to the lower number, of groups and of experts. A softmax or sigmoid orders experts as their logits do but for
// ties of rounding.
#pragma once

#include <torch/types.h>

#include <memory>

#include "lora/adapters/adapter.h"
#include "moe/blueprint.h"
#include "moe/cost.h"

namespace moetune {

/// What a router holds; each in any float dtype, what is undefined is not there.
struct RouterTensors {
  at::Tensor weight_ED;              ///< frozen, or an autograd leaf that trains
  at::Tensor correction_E;           ///< added to scores for the choice; fp32 (fp64 in proofs)
  at::Tensor logit_bias_E;           ///< of the logits; frozen or a leaf
  std::unique_ptr<Adapter> adapter;  ///< of the map; null: none
};

/// Positions of the `count` largest numbers of each row, the largest first, ties to the lower position, on every
/// device.
at::Tensor top_indices(const at::Tensor& values, int64_t count);

class Router {
 public:
  /// Checks that the tensors are those that the spec asks for.
  Router(const RouterSpec& spec, RouterTensors tensors);

  /// s [T, E], computed in fp32 (fp64 for fp64 input). token_T: global tokens of the rows, read under an adapter's
  /// dropout only.
  at::Tensor scores(const at::Tensor& x_TD, const at::Tensor& token_T = {}, const StepRandom& random = {}) const;
  /// Experts of each token, int64 [T, K].
  at::Tensor choose(const at::Tensor& score_TE) const;
  /// w of the chosen experts, [T, K]. A choice of E (a row of padding) has some weight that nobody reads.
  at::Tensor weights(const at::Tensor& score_TE, const at::Tensor& expert_TK) const;
  /// Scores as shares of 1 over all experts, [T, E], which balance losses take means of: s_i / sum_j s_j (V3 report eq.
  /// 20), of a softmax the scores themselves, of kSoftmaxOfChosen the softmax of all logits (as transformers has it).
  at::Tensor probabilities(const at::Tensor& score_TE) const;

  const RouterSpec& spec() const { return spec_; }
  const at::Tensor& weight() const { return tensors_.weight_ED; }
  Adapter* adapter() const { return tensors_.adapter.get(); }
  /// The correction bias; undefined where the model has none.
  const at::Tensor& bias() const { return tensors_.correction_E; }
  /// Moves the correction bias by rate * sign(mean load - load_i) (V3 report section 2.1.2). `load_E`: tokens of each
  /// expert over the whole step.
  void update_bias(const at::Tensor& load_E, double rate);

 private:
  RouterSpec spec_;
  RouterTensors tensors_;
};

/// Other ranks than its own to which a row goes, on average over choices that are all alike, where each of `ranks`
/// ranks holds as many of the experts, in their order.
double expected_remote_ranks(const RouterSpec& spec, int64_t ranks);

/// Of a row: scores, choice and weights, and their backward pass; `width`: D.
PartCost router_cost(const RouterSpec& spec, int64_t width, const PassTraits& traits);

}  // namespace moetune
