// SwiGLU MLP (Shazeer 2020): down(silu(gate(x)) * up(x)); the dense layers' MLP and the shared expert.
//
//   at::Tensor y_TD = mlp.forward(x_TD, slice.token_T, random);
#pragma once

#include <memory>
#include <vector>

#include "lora/linear.h"

namespace moetune {

class SwigluMlp {
 public:
  SwigluMlp(std::unique_ptr<Linear> gate, std::unique_ptr<Linear> up, std::unique_ptr<Linear> down)
      : gate_(std::move(gate)), up_(std::move(up)), down_(std::move(down)) {}
  at::Tensor forward(const at::Tensor& x_TD, const at::Tensor& token_T, const StepRandom& random) const {
    at::Tensor hidden_TF = at::silu(gate_->forward(x_TD, token_T, random)) * up_->forward(x_TD, token_T, random);
    return down_->forward(hidden_TF, token_T, random);
  }
  std::vector<Linear*> linears() const { return {gate_.get(), up_.get(), down_.get()}; }

 private:
  std::unique_ptr<Linear> gate_, up_, down_;
};

}  // namespace moetune
