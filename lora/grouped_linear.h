// One linear map per expert, applied to rows grouped by expert: frozen and adapted, or trained itself; with a bias or
// without.
//
//   at::Tensor w = gate.dense(first, count, scratch, counters);  // a chunk of experts, dequantised once a pass
//   at::Tensor y_XO = gate.forward(x_XI, w, chunk, token_X, random);
//   // adds the adapter's (or the weight's) gradients
//   at::Tensor dx_XI = gate.backward(dy_XO, x_XI, w, chunk, token_X, random);
//
// Forward and backward are plain functions: the caller orders them between autograd segments and token exchanges. They
// are made of pieces, with which several maps of the same rows share a product (grouped_maps.h).
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

/// A bias of each map of a stack, [e, O] in compute dtype: none, frozen or trained.
class GroupedBias {
 public:
  GroupedBias() = default;
  explicit GroupedBias(at::Tensor frozen_eO) : values_eO_(std::move(frozen_eO)) {}
  explicit GroupedBias(Parameter& trained) : trained_(&trained) {}

  bool defined() const { return trained_ != nullptr || values_eO_.defined(); }
  Parameter* trained() const { return trained_; }
  /// The bias that each row of the chunk gets: [X, O].
  at::Tensor rows(const ExpertChunk& chunk) const;
  /// d b_e += sum of w dy over the rows of e, where it trains. `weight_X1` undefined: 1.
  void add_gradient(const at::Tensor& dy_XO, const ExpertChunk& chunk, const at::Tensor& weight_X1) const;

 private:
  at::Tensor values_eO_;
  Parameter* trained_ = nullptr;
};

class GroupedLinear {
 public:
  GroupedLinear(std::unique_ptr<FrozenWeight> frozen, std::unique_ptr<Adapter> adapter, GroupedBias bias = {});
  /// Weights [e, O, I] that train.
  explicit GroupedLinear(Parameter& trained, GroupedBias bias = {});

  /// Dense weights of `count` experts from `first`: [count, O, I].
  at::Tensor dense(int64_t first, int64_t count, Scratch& scratch, DequantCounters& counters) const;

  /// y = x W_e^T + s (drop(x) A_e^T) B_e^T + w b_e. token_X: global tokens of the rows, read under dropout only.
  /// `bias_weight_X1`: w, a factor of each row's bias; undefined: 1.
  at::Tensor forward(const at::Tensor& x_XI, const at::Tensor& dense_eOI, const ExpertChunk& chunk,
                     const at::Tensor& token_X, const StepRandom& random, const at::Tensor& bias_weight_X1 = {}) const;
  /// Returns d x and adds the gradients of what trains. x and bias_weight are forward's; x A^T is computed again, R
  /// columns being cheaper than kept. Of bias_weight there is bias_weight_gradient().
  at::Tensor backward(const at::Tensor& dy_XO, const at::Tensor& x_XI, const at::Tensor& dense_eOI,
                      const ExpertChunk& chunk, const at::Tensor& token_X, const StepRandom& random,
                      const at::Tensor& bias_weight_X1 = {});

  /// What forward() adds to x W_e^T.
  void add_bias(at::Tensor y_XO, const ExpertChunk& chunk, const at::Tensor& bias_weight_X1) const;
  void add_adapter(at::Tensor y_XO, const at::Tensor& x_XI, const ExpertChunk& chunk, const at::Tensor& token_X,
                   const StepRandom& random) const;
  /// What backward() adds to dy W_e. Returns d (x A_e^T) of the adapted rows, which add_gradients() wants; undefined
  /// where the chunk has no adapter.
  at::Tensor add_adapter_input_gradient(at::Tensor dx_XI, const at::Tensor& dy_XO, const ExpertChunk& chunk,
                                        const at::Tensor& token_X, const StepRandom& random) const;
  /// Adds the gradients of what trains. x is read where needs_input().
  void add_gradients(const at::Tensor& dy_XO, const at::Tensor& x_XI, const at::Tensor& d_low_XR,
                     const ExpertChunk& chunk, const at::Tensor& token_X, const StepRandom& random,
                     const at::Tensor& bias_weight_X1);
  /// Whether gradients take the map's input.
  bool needs_input() const { return adapter_ != nullptr || trained_ != nullptr; }
  /// d w = <dy, b_e> of each row, [X] in `dtype`; only with a bias.
  at::Tensor bias_weight_gradient(const at::Tensor& dy_XO, const ExpertChunk& chunk, at::ScalarType dtype) const;

  /// Gives the stack an adapter that it was made without.
  void adapt(std::unique_ptr<Adapter> adapter) { adapter_ = std::move(adapter); }
  /// Leaves the bias to another rank: of a map that is cut by its inputs the parts' outputs are summed, and one part
  /// alone adds it. Its gradient is nothing here.
  void leave_bias() { adds_bias_ = false; }
  /// Whether forward() adds a bias.
  bool adds_bias() const { return adds_bias_ && bias_.defined(); }
  const GroupedBias& bias() const { return bias_; }

  FrozenWeight* frozen() const { return frozen_.get(); }
  Adapter* adapter() const { return adapter_.get(); }
  Parameter* trained() const { return trained_; }
  bool trains() const { return adapter_ != nullptr || trained_ != nullptr || bias_.trained() != nullptr; }
  /// Of each map, as held here.
  int64_t outputs() const { return trained_ != nullptr ? trained_->working.size(1) : frozen_->shape().held_outputs(); }
  int64_t inputs() const { return trained_ != nullptr ? trained_->working.size(2) : frozen_->shape().held_inputs(); }
  /// Scratch elements of one expert's dense weight: 0 where it is held dense.
  int64_t scratch_elements_per_expert() const;

 private:
  /// The rows of a chunk whose experts have adapters, and the adapter's part that they go through.
  struct AdaptedRows {
    int64_t first = 0, count = 0;  ///< rows of the stacks A and B
    RowGroups groups;
    at::Tensor row_X;  ///< int64; undefined: all rows of the chunk
    at::Tensor of(const at::Tensor& rows_X) const {
      return row_X.defined() && rows_X.defined() ? rows_X.index_select(0, row_X) : rows_X;
    }
    /// target += scale * delta at these rows
    void add_to(at::Tensor target, const at::Tensor& delta, double scale) const {
      row_X.defined() ? target.index_add_(0, row_X, delta, scale) : target.add_(delta, scale);
    }
    at::Tensor of_stack(const at::Tensor& stack) const { return stack.narrow(0, first, count); }
  };
  AdaptedRows adapted_rows(const ExpertChunk& chunk) const;

  std::unique_ptr<FrozenWeight> frozen_;
  std::unique_ptr<Adapter> adapter_;
  Parameter* trained_ = nullptr;
  GroupedBias bias_;
  bool adds_bias_ = true;
};

}  // namespace moetune
