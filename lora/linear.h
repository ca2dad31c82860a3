// A linear map y = x W^T + b: its weight is frozen and may carry an adapter, or it trains itself; the bias is optional.
//
//   Linear q_a({.name = "model.layers.3.self_attn.q_a_proj", ...}, frozen);      // frozen + adapter
//   at::Tensor y_TO = q_a.forward(x_TI, token_T, random);
//
// Frozen: the graph keeps the address of the weight, not its dense form; backward multiplies by the dense weight of the
// use of its own pass (d x = d y W). The weight itself gets no gradient, so x is saved only where an adapter needs it,
// and beside it x A^T. A dropout's mask is drawn again in the backward pass.
//
// The bias b [O] is a tensor in compute dtype, frozen, or an autograd leaf (a Parameter's working copy) that trains by
// d b = sum of d y over the rows. It is not part of the adapter: y = x W^T + b + s B A x. Hazard: of a map that a
// tensor axis cuts by its inputs the ranks' results are summed, so b goes to the rank with index 0 alone; a map cut by
// its outputs has on each rank the elements of b that belong to the outputs there.
//
// Where several ranks hold the same outputs of a frozen weight, what trains on it, B or the weight itself, and b are
// whole on each and used in part: the outputs that a rank does not compute get no gradient there, and the sum over all
// ranks is that of the whole map.
#pragma once

#include <memory>

#include "lora/adapters/adapter.h"
#include "lora/frozen_weight.h"
#include "parallel/device/wanted.h"

namespace moetune {

/// The outputs that a rank computes of those that it holds of what trains, and of a bias.
struct OutputRange {
  int64_t first = 0;
  int64_t count = -1;  ///< -1: all
  at::Tensor of(const at::Tensor& held) const {
    return count < 0 || !held.defined() ? held : held.narrow(0, first, count);
  }
};

class Linear {
 public:
  /// A frozen map, with an adapter or without (null), with a bias or without (undefined).
  Linear(std::unique_ptr<FrozenWeight> frozen, std::unique_ptr<Adapter> adapter, at::Tensor bias_O = {},
         OutputRange used = {});
  /// A map whose weight [O, I] trains.
  explicit Linear(Parameter& trained, at::Tensor bias_O = {}, OutputRange used = {});

  /// x_TI in compute dtype, two-dimensional -> y_TO. token_T: global token numbers (int64), read only under dropout.
  /// Without numbers y costs a frozen map nothing but x A^T; of a weight that trains they are there anyway.
  at::Tensor forward(const at::Tensor& x_TI, const at::Tensor& token_T, const StepRandom& random,
                     Wanted wanted = Wanted::kNumbers) const;

  FrozenWeight* frozen() const { return frozen_.get(); }
  Adapter* adapter() const { return adapter_.get(); }
  Parameter* trained() const { return trained_; }
  const at::Tensor& bias() const { return bias_; }

 private:
  std::unique_ptr<FrozenWeight> frozen_;
  std::unique_ptr<Adapter> adapter_;
  Parameter* trained_ = nullptr;
  at::Tensor bias_;
  OutputRange used_;
};

/// x_TI W^T + b with a frozen W; differentiable in x and b (undefined: none). `weight` must be in use in forward and in
/// backward.
at::Tensor frozen_matmul(const at::Tensor& x_TI, const FrozenWeight& weight, const at::Tensor& bias_O = {});

}  // namespace moetune
