// AdamW on the CPU (Loshchilov, Hutter 2019): master weights and moments in host memory, working copies on the device.
//
//   Optimizer optimizer(parameters, {.betas = {0.9, 0.999}, ...});
//   optimizer.step(lr, clip_factor);      // one update of every parameter from its gradient
//
// LibTorch's fused CPU kernel does the arithmetic: one pass over parameter, gradient and both moments.
#pragma once

#include <array>
#include <cstdint>
#include <vector>

#include "lora/parameter.h"

namespace moetune {

struct OptimizerOptions {
  double lr_b_ratio = 1.0;  ///< learning rate of B over that of the rest (LoRA+, Hayou et al. 2024)
  std::array<double, 2> betas = {0.9, 0.999};
  double eps = 1e-8;
  double weight_decay = 0.0;
};

class Optimizer {
 public:
  struct Moments {
    at::Tensor first, second;  ///< CPU, the master's shape and dtype
  };

  Optimizer(ParameterSet& parameters, const OptimizerOptions& options);

  /// p <- p (1 - lr wd) - lr m_hat / (sqrt(v_hat) + eps) with gradients times `gradient_factor`; then refreshes the working copies and
  /// clears the gradients. Every parameter takes part, a zero gradient included.
  void step(double lr, double gradient_factor);

  int64_t steps_taken() const { return steps_taken_; }
  void set_steps_taken(int64_t steps) { steps_taken_ = steps; }
  /// In the order of the parameter set: what a checkpoint saves beside the masters.
  std::vector<Moments>& moments() { return moments_; }
  /// Host bytes of masters and moments of `elements` trained numbers.
  static int64_t host_bytes(int64_t elements, at::ScalarType compute);

 private:
  ParameterSet& parameters_;
  OptimizerOptions options_;
  std::vector<Moments> moments_;
  int64_t steps_taken_ = 0;
};

}  // namespace moetune
