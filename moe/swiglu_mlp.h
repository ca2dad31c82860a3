// SwiGLU MLP (Shazeer 2020): down(silu(gate(x)) * up(x)); the dense layers' MLP and the shared expert, whose output may
// have a gate of its own, sigmoid(x . g) (Qwen2-MoE).
//
//   at::Tensor y_TD = mlp.forward(x_TD, slice, random);
//
// On a tensor axis each rank has its features of the hidden activation, for the rows of all ranks; g is whole on each
// and multiplies its own rows.
#pragma once

#include <memory>
#include <vector>

#include "lora/linear.h"
#include "moe/attention/slice.h"
#include "moe/cost.h"
#include "moe/swiglu.h"
#include "parallel/comm/tensor_axis.h"

namespace moetune {

class SwigluMlp {
 public:
  SwigluMlp(std::unique_ptr<Linear> gate, std::unique_ptr<Linear> up, std::unique_ptr<Linear> down,
            const TensorAxis& axis, at::Tensor output_gate_1D = {})
      : gate_(std::move(gate)),
        up_(std::move(up)),
        down_(std::move(down)),
        output_gate_1D_(std::move(output_gate_1D)),
        axis_(axis) {}
  /// Differentiable in x, in g and in what else trains. Collective over the axis.
  at::Tensor forward(const at::Tensor& x_TD, const Slice& slice, const StepRandom& random,
                     Wanted wanted = Wanted::kNumbers) const {
    if (output_gate_1D_.defined()) wanted = Wanted::kNumbers;  // which the gate's gradient takes
    at::Tensor x_UD = axis_.gather_rows(x_TD, slice.num_all_rows);
    at::Tensor hidden_UF =
        swiglu(gate_->forward(x_UD, slice.token_U, random), up_->forward(x_UD, slice.token_U, random));
    at::Tensor y_TD = axis_.reduce_scatter_rows(down_->forward(hidden_UF, slice.token_U, random, wanted), wanted);
    return output_gate_1D_.defined() ? at::linear(x_TD, output_gate_1D_).sigmoid() * y_TD : y_TD;
  }
  std::vector<Linear*> linears() const { return {gate_.get(), up_.get(), down_.get()}; }

 private:
  std::unique_ptr<Linear> gate_, up_, down_;
  at::Tensor output_gate_1D_;  ///< g in compute dtype; undefined: none
  TensorAxis axis_;
};

/// Of a row through forward() and its backward pass, x apart; `width`: D; `gates_output`: there is g.
PartCost swiglu_mlp_cost(const DenseMaps& maps, int64_t width, bool gates_output, const PassTraits& traits);

}  // namespace moetune
