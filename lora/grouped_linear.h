// One linear map per expert, applied to rows grouped by expert: frozen and adapted, or trained itself.
//
//   at::Tensor w = gate.dense(first, count, scratch, counters);  // a chunk of experts, dequantised once a pass
//   at::Tensor y_XO = gate.forward(x_XI, w, chunk, token_X, random);
//   // adds the adapter's (or the weight's) gradients
//   at::Tensor dx_XI = gate.backward(dy_XO, x_XI, w, chunk, token_X, random);
//
// Forward and backward are plain functions: the caller orders them between autograd segments and token exchanges.
#pragma once

#include <memory>

#include "lora/adapters/adapter.h"
#include "lora/frozen_weight.h"
#include "lora/grouped_mm.h"

namespace moetune {

/// A run of experts first .. first + count - 1 of this rank and their rows, numbered from the run's first row.
struct ExpertChunk {
  int64_t first = 0;
  int64_t count = 0;
  int64_t first_row = 0;
  RowGroups groups;
};

class GroupedLinear {
 public:
  GroupedLinear(std::unique_ptr<FrozenWeight> frozen, std::unique_ptr<Adapter> adapter);
  /// Weights [e, O, I] that train.
  explicit GroupedLinear(Parameter& trained);

  /// Dense weights of `count` experts from `first`: [count, O, I].
  at::Tensor dense(int64_t first, int64_t count, Scratch& scratch, DequantCounters& counters) const;

  /// y = x W_e^T + s (drop(x) A_e^T) B_e^T. token_X: global tokens of the rows, read under dropout only.
  at::Tensor forward(const at::Tensor& x_XI, const at::Tensor& dense_eOI, const ExpertChunk& chunk,
                     const at::Tensor& token_X, const StepRandom& random) const;
  /// Returns d x and adds the gradients of what trains. x is forward's; x A^T is computed again, R columns being
  /// cheaper than kept.
  at::Tensor backward(const at::Tensor& dy_XO, const at::Tensor& x_XI, const at::Tensor& dense_eOI,
                      const ExpertChunk& chunk, const at::Tensor& token_X, const StepRandom& random);

  FrozenWeight* frozen() const { return frozen_.get(); }
  Adapter* adapter() const { return adapter_.get(); }
  Parameter* trained() const { return trained_; }
  bool trains() const { return adapter_ != nullptr || trained_ != nullptr; }
  /// Scratch elements of one expert's dense weight: 0 where it is held dense.
  int64_t scratch_elements_per_expert() const;

 private:
  std::unique_ptr<FrozenWeight> frozen_;
  std::unique_ptr<Adapter> adapter_;
  Parameter* trained_ = nullptr;
};

}  // namespace moetune
