// The gated MLPs of a layer's routed experts, over rows grouped by expert: their mathematics, without where rows come
// from.
//
//   at::Tensor out_XD = mlp.forward(chunk, {x_XD, weight_X, token_X}, pass);
//   ...
//   RowGradients d = mlp.backward(chunk, {x_XD, weight_X, token_X}, d_out_XD, pass);   // adapters' are added
//
// With routing weight w of a row, x its input, h the hidden activation:
//
//   h   = silu(gate(x)) up(x)                                   kSwiglu (Shazeer 2020)
//   h   = (u + 1) g sigmoid(alpha g)                            kClampedSwiglu (gpt-oss; transformers' GptOssExperts),
//         g = min(gate(x), limit), u = max(min(up(x), limit), -limit)
//
//   out = w expert(x) = w (down h + b) = down(w h) + w b        kOutput: computed at the hidden activation, where
//   d w = <d(w h), h> + <d out, b>                              w costs F numbers a row instead of D and d w no output
//   out = expert(w x)                                           kInput (Llama-4)
//   d w = <d(w x), x>,  d x = w d(w x)
//
// Gate and up are two maps, or one whose outputs alternate, gate first (gpt-oss): then an adapter is of the one map.
// Ranks that share an expert hold some features of h each; outputs, d x and d w are then partial sums.
#pragma once

#include <memory>
#include <utility>
#include <vector>

#include "lora/grouped_linear.h"
#include "moe/blueprint.h"
#include "moe/pass_context.h"

namespace moetune {

/// Rows of one chunk of experts, grouped by expert.
struct ExpertRows {
  at::Tensor x_XD;      ///< copies of the caller's: forward() may overwrite them
  at::Tensor weight_X;  ///< routing weight of each
  at::Tensor token_X;   ///< global tokens, read under dropout only
};

/// Before the activation; of a joint map views of its outputs.
struct GateUp {
  at::Tensor gate_XF, up_XF;
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

  /// `kept` receives what backward() would compute again, where it is not null.
  at::Tensor forward(const ExpertChunk& chunk, const ExpertRows& rows, PassContext& pass, GateUp* kept = nullptr) const;
  /// d weight in the dtype of d_out; gradients of what trains are added to their parameters. `kept`: forward()'s, or
  /// null.
  RowGradients backward(const ExpertChunk& chunk, const ExpertRows& rows, const at::Tensor& d_out_XD, PassContext& pass,
                        const GateUp* kept = nullptr) const;

  /// Gate, up, down; or gate and up joint, down.
  std::vector<GroupedLinear*> linears() const;
  GroupedLinear& down() const { return *down_; }
  bool is_joint() const { return up_ == nullptr; }
  /// Whether an adapter drops inputs in this step, for which rows need their tokens' numbers.
  bool drops(const StepRandom& random) const;
  /// Scratch that one expert's dense weights take, in elements.
  int64_t scratch_elements_per_expert() const;

 private:
  /// [e, O, I] of the chunk's experts
  at::Tensor dense(const GroupedLinear& map, const ExpertChunk& chunk, PassContext& pass) const;
  bool weighs_input() const { return spec_.weight_acts == ExpertSpec::WeightActs::kInput; }

  ExpertSpec spec_;
  std::unique_ptr<GroupedLinear> gate_;  // or gate and up
  std::unique_ptr<GroupedLinear> up_;    // null: joint
  std::unique_ptr<GroupedLinear> down_;
};

}  // namespace moetune
