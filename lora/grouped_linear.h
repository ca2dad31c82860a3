// One linear map per expert, applied to rows grouped by expert: frozen and adapted, or trained itself, all of them or
// some; with a bias or without.
//
//   at::Tensor w = gate.dense(first, count, scratch, counters);  // a chunk of experts, dequantised once a pass
//   at::Tensor y_XO = gate.forward(x_XI, w, chunk, token_X, random);
//   // adds the adapter's (or the weight's) gradients
//   at::Tensor dx_XI = gate.backward(dy_XO, x_XI, w, chunk, token_X, random);
//
// Forward and backward are plain functions: the caller orders them between autograd segments and token exchanges. They
// are made of pieces, with which several maps of the same rows share a product (grouped_maps.h).
//
// Where some experts train, all of them are held frozen as well: what trains is laid over the dense form of a chunk, so
// that products are as grouped as ever, and of the chunk's rows those experts' alone make gradients.
#pragma once

#include <memory>

#include "lora/adapters/adapter.h"
#include "lora/expert_chunk.h"
#include "lora/frozen_weight.h"

namespace moetune {

/// Numbers of this rank's experts that train: of some of its experts, those that lie in `experts` (expert_chunk.h), a
/// row of the parameter each.
struct TrainedExperts {
  Parameter* rows = nullptr;  ///< null: nothing trains
  std::vector<int64_t> experts = {};
  static TrainedExperts all(Parameter& rows);
};

/// A bias of each map of a stack, [e, O] in compute dtype: none, frozen, trained, or of some experts trained.
class GroupedBias {
 public:
  GroupedBias() = default;
  explicit GroupedBias(at::Tensor frozen_eO) : values_eO_(std::move(frozen_eO)) {}
  explicit GroupedBias(Parameter& trained) : trained_(TrainedExperts::all(trained)) {}
  /// From here on these train, in the place of what is frozen.
  void train(TrainedExperts some) { trained_ = std::move(some); }

  bool defined() const { return trained() != nullptr || values_eO_.defined(); }
  Parameter* trained() const { return trained_.rows; }
  /// The bias that each row of the chunk gets: [X, O].
  at::Tensor rows(const ExpertChunk& chunk) const;
  /// d b_e += sum of w dy over the rows of e, where it trains. `weight_X1` undefined: 1.
  void add_gradient(const at::Tensor& dy_XO, const ExpertChunk& chunk, const at::Tensor& weight_X1) const;

 private:
  at::Tensor values_eO_;
  TrainedExperts trained_;
};

class GroupedLinear {
 public:
  GroupedLinear(std::unique_ptr<FrozenWeight> frozen, std::unique_ptr<Adapter> adapter, GroupedBias bias = {});
  /// Weights [e, O, I] that train.
  explicit GroupedLinear(Parameter& trained, GroupedBias bias = {});

  /// Dense weights of `count` experts from `first`: [count, O, I].
  at::Tensor dense(int64_t first, int64_t count, Scratch& scratch, DequantCounters& counters) const;
  /// Whether dense() of these takes them from the scratch, not from where they are held. Then they can be written to
  /// out_eOI too, as FrozenWeight::dense_units_into() does.
  bool makes_dense(int64_t first, int64_t count) const;
  void dense_into(int64_t first, at::Tensor out_eOI, Scratch& scratch, DequantCounters& counters) const;

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
  bool needs_input() const { return adapter_ != nullptr || trained() != nullptr; }
  /// d w = <dy, b_e> of each row, [X] in `dtype`; only with a bias.
  at::Tensor bias_weight_gradient(const at::Tensor& dy_XO, const ExpertChunk& chunk, at::ScalarType dtype) const;

  /// Gives the stack an adapter that it was made without.
  void adapt(std::unique_ptr<Adapter> adapter) { adapter_ = std::move(adapter); }
  /// From here on these experts train, in the place of their frozen weights; their biases.
  void train(TrainedExperts some) { trained_ = std::move(some); }
  void train_bias(TrainedExperts some) { bias_.train(std::move(some)); }
  /// Leaves the bias to another rank: of a map that is cut by its inputs the parts' outputs are summed, and one part
  /// alone adds it. Its gradient is nothing here.
  void leave_bias() { adds_bias_ = false; }
  /// Whether forward() adds a bias.
  bool adds_bias() const { return adds_bias_ && bias_.defined(); }
  const GroupedBias& bias() const { return bias_; }

  FrozenWeight* frozen() const { return frozen_.get(); }
  Adapter* adapter() const { return adapter_.get(); }
  Parameter* trained() const { return trained_.rows; }
  bool trains() const { return needs_input() || bias_.trained() != nullptr; }
  /// Of each map, as held here.
  int64_t outputs() const { return frozen_ ? frozen_->shape().held_outputs() : trained()->working.size(1); }
  int64_t inputs() const { return frozen_ ? frozen_->shape().held_inputs() : trained()->working.size(2); }
  /// Scratch elements of one expert's dense weight: 0 where it is held dense.
  int64_t scratch_elements_per_expert() const;

 private:
  std::unique_ptr<FrozenWeight> frozen_;
  std::unique_ptr<Adapter> adapter_;
  TrainedExperts trained_;
  GroupedBias bias_;
  bool adds_bias_ = true;
};

}  // namespace moetune
