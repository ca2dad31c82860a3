// torch::autograd::grad with its outputs and inputs named where they are known, instead of told apart by position.
//
//   NamedGradients gradients;
//   gradients.of(mixed.residual_TD, d_y_TD);
//   gradients.in(x_TD, [&](const at::Tensor& d_x_TD) { ... });
//   gradients.compute();
#pragma once

#include <torch/types.h>

#include <functional>
#include <vector>

namespace moetune {

class NamedGradients {
 public:
  /// Receives the gradient; undefined where the outputs do not depend on the input.
  using Taker = std::function<void(const at::Tensor& gradient)>;

  /// `output` is differentiated, `d_output` coming in from above. Does nothing where it is undefined or has no graph.
  void of(const at::Tensor& output, const at::Tensor& d_output);
  void in(const at::Tensor& input, Taker take);
  /// Walks the graph once, which ends it, and hands the gradients out in the order of in(). Nothing is handed out where
  /// there is no output or no input.
  void compute();

 private:
  std::vector<at::Tensor> outputs_, d_outputs_, inputs_;
  std::vector<Taker> takers_;
};

}  // namespace moetune
