// A linear map y = x W^T: its weight is frozen and may carry an adapter, or it trains itself.
//
//   Linear q_a({.name = "model.layers.3.self_attn.q_a_proj", ...}, frozen);      // frozen + adapter
//   at::Tensor y_TO = q_a.forward(x_TI, token_T, random);
//
// Frozen: the graph keeps the address of the weight, not its dense form; backward multiplies by the dense weight of the
// use of its own pass (d x = d y W). The weight itself gets no gradient, so x is saved only where an adapter needs it.
#pragma once

#include <memory>

#include "lora/adapters/adapter.h"
#include "lora/frozen_weight.h"

namespace moetune {

class Linear {
 public:
  /// A frozen map, with an adapter or without (null).
  Linear(std::unique_ptr<FrozenWeight> frozen, std::unique_ptr<Adapter> adapter);
  /// A map whose weight [O, I] trains.
  explicit Linear(Parameter& trained);

  /// x_TI in compute dtype -> y_TO. token_T: global token numbers (int64), read only under dropout.
  at::Tensor forward(const at::Tensor& x_TI, const at::Tensor& token_T, const StepRandom& random) const;

  FrozenWeight* frozen() const { return frozen_.get(); }
  Adapter* adapter() const { return adapter_.get(); }
  Parameter* trained() const { return trained_; }

 private:
  std::unique_ptr<FrozenWeight> frozen_;
  std::unique_ptr<Adapter> adapter_;
  Parameter* trained_ = nullptr;
};

/// x_TI W^T with a frozen W; differentiable in x. `weight` must be in use in forward and in backward.
at::Tensor frozen_matmul(const at::Tensor& x_TI, const FrozenWeight& weight);

}  // namespace moetune
