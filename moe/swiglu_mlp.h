// SwiGLU MLP (Shazeer 2020): down(silu(gate(x)) * up(x)); the dense layers' MLP and the shared expert.
//
//   at::Tensor y_TD = mlp.forward(x_TD, slice, random);
//
// On a tensor axis each rank has its features of the hidden activation, for the rows of all ranks.
#pragma once

#include <memory>
#include <vector>

#include "lora/linear.h"
#include "moe/attention/slice.h"
#include "parallel/comm/tensor_axis.h"

namespace moetune {

class SwigluMlp {
 public:
  SwigluMlp(std::unique_ptr<Linear> gate, std::unique_ptr<Linear> up, std::unique_ptr<Linear> down,
            const TensorAxis& axis)
      : gate_(std::move(gate)), up_(std::move(up)), down_(std::move(down)), axis_(axis) {}
  /// Collective over the axis.
  at::Tensor forward(const at::Tensor& x_TD, const Slice& slice, const StepRandom& random) const {
    at::Tensor x_UD = axis_.gather_rows(x_TD, slice.num_all_rows);
    at::Tensor hidden_UF =
        at::silu(gate_->forward(x_UD, slice.token_U, random)) * up_->forward(x_UD, slice.token_U, random);
    return axis_.reduce_scatter_rows(down_->forward(hidden_UF, slice.token_U, random));
  }
  std::vector<Linear*> linears() const { return {gate_.get(), up_.get(), down_.get()}; }

 private:
  std::unique_ptr<Linear> gate_, up_, down_;
  TensorAxis axis_;
};

}  // namespace moetune
