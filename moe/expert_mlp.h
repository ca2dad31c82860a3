// The gated MLPs of a layer's routed experts, over rows grouped by expert: their mathematics, without where rows come
// from.
//
//   at::Tensor out_XD = mlp.forward(chunk, {x_XD, weight_X, token_X}, pass);
//   ...
//   RowGradients d = mlp.backward(chunk, {x_XD, weight_X, token_X}, d_out_XD, pass);   // adapters' are added
//
// With routing weight w of a row, x its input, h the hidden activation (gated_activation.h):
//
//   out = w expert(x) = w (down h + b) = down(w h) + w b        kOutput: computed at the hidden activation, where
//   d w = <d(w h), h> + <d out, b>                              w costs F numbers a row instead of D and d w no output
//   out = expert(w x)                                           kInput (Llama-4)
//   d w = <d(w x), x>,  d x = w d(w x)
//
// Gate and up are two maps, whose outputs lie side by side, or one whose outputs alternate, gate first (gpt-oss): then
// an adapter is of the one map.
// Ranks that share an expert hold some features of h each; outputs, d x and d w are then partial sums.
#pragma once

#include <memory>
#include <utility>
#include <vector>

#include "lora/grouped_maps.h"
#include "moe/blueprint.h"
#include "moe/gated_activation.h"
#include "moe/pass_context.h"

namespace moetune {

/// Rows of one chunk of experts, grouped by expert.
struct ExpertRows {
  at::Tensor x_XD;      ///< copies of the caller's, which may be overwritten: [X, D], or [X, x_columns()]
  at::Tensor weight_X;  ///< routing weight of each
  at::Tensor token_X;   ///< global tokens, read under dropout only
};

struct RowGradients {
  at::Tensor d_x_XD;
  at::Tensor d_weight_X;
};

class ExpertMlp {
 public:
  /// Two maps to the hidden features.
  ExpertMlp(const ExpertSpec& spec, std::unique_ptr<GroupedLinear> gate, std::unique_ptr<GroupedLinear> up,
            std::unique_ptr<GroupedLinear> down);
  /// One map to both, outputs alternating.
  ExpertMlp(const ExpertSpec& spec, std::unique_ptr<GroupedLinear> gate_up, std::unique_ptr<GroupedLinear> down);

  /// `kept_X2F` receives gate and up, which backward() would compute again, where it is not null.
  at::Tensor forward(const ExpertChunk& chunk, const ExpertRows& rows, PassContext& pass,
                     at::Tensor* kept_X2F = nullptr) const;
  /// d weight in the dtype of d_out; gradients of what trains are added to their parameters. d_out_XD: [X, D], or
  /// [X, d_out_columns()]. `kept_X2F`: forward()'s, which stays as it is, or null.
  RowGradients backward(const ExpertChunk& chunk, const ExpertRows& rows, const at::Tensor& d_out_XD, PassContext& pass,
                        const at::Tensor* kept_X2F = nullptr);

  /// Columns of x and of d_out with those that adapters take (GroupedMaps::spare()): with them no row is copied.
  int64_t x_columns(const StepRandom& random) const { return gate_up_.inputs() + gate_up_.spare(random); }
  int64_t d_out_columns(const StepRandom& random) const { return down_.outputs() + down_.spare(random); }
  /// GroupedMaps::fold().
  void fold_adapters(bool always) {
    gate_up_.fold(always);
    down_.fold(always);
  }

  /// Gate, up, down; or gate and up joint, down.
  std::vector<GroupedLinear*> linears() const;
  GroupedLinear& down() const { return *maps_.back(); }
  /// Whether an adapter drops inputs in this step, for which rows need their tokens' numbers.
  bool drops(const StepRandom& random) const;
  /// Scratch that one expert's dense weights take, in elements.
  int64_t scratch_elements_per_expert() const;

 private:
  ExpertMlp(const ExpertSpec& spec, std::vector<std::unique_ptr<GroupedLinear>> maps);
  /// Rows x without their spare columns.
  at::Tensor own_columns(const at::Tensor& x_XD) const { return x_XD.narrow(1, 0, gate_up_.inputs()); }
  bool weighs_input() const { return spec_.weight_acts == ExpertSpec::WeightActs::kInput; }

  ExpertSpec spec_;
  ActivationForm form_;
  std::vector<std::unique_ptr<GroupedLinear>> maps_;  ///< gate, up, down; or gate and up joint, down
  GroupedMaps gate_up_, down_;
};

}  // namespace moetune
