// A tensor that trains: its master copy on the host, its working copy on the device, and the gradient that a step
// gathers.
//
//   Parameter& a = parameters.add({.name = "...lora_A.weight", .layer = 3, .role = Role::kAdapterA}, initial_fp32);
//   y = at::linear(x, a.working);           // autograd leaf
//   a.add_gradient(d_a);                    // any dtype; summed in fp32 (fp64 in proofs), or as the set says
//
// In training the master lives here from initialisation (or an adapter's loading) until the optimizer takes it over,
// shard by shard.
#pragma once

#include <torch/types.h>

#include <deque>
#include <optional>
#include <string>
#include <vector>

#include "lora/layer_id.h"

namespace moetune {

/// dtype of masters, moments, gradients and statistics beside `compute`: fp64 in proofs, fp32 otherwise.
inline at::ScalarType accumulate_dtype(at::ScalarType compute) {
  return compute == at::kDouble ? at::kDouble : at::kFloat;
}

/// What a parameter is; the learning rate of B may differ (LoRA+).
enum class Role { kAdapterA, kAdapterB, kWeight };

/// Where copies of a parameter live. A rank's gradient is what its own rows and its own parts of matrices give; over
/// the copies it adds up to the whole.
enum class Replicas {
  kEverywhere,  ///< on every rank
  /// on the ranks at one place of the tensor axis; those at other places hold other parts (`part`)
  kTensorIndex,
  /// on the ranks that hold the same experts; other ranks hold other experts' rows of the same stack
  kExpertReplicas,
  /// of those on the ones at one place of the tensor axis; those at other places hold other parts of each expert's rows
  kExpertTensorIndex,
};

/// Where copies live of a tensor, or of a stack over experts, that the tensor axis cuts or not.
inline Replicas replicas_of(bool of_experts, bool cut) {
  if (of_experts) return cut ? Replicas::kExpertTensorIndex : Replicas::kExpertReplicas;
  return cut ? Replicas::kTensorIndex : Replicas::kEverywhere;
}

/// The part of a tensor that this rank holds where the tensor axis cuts it: elements first .. first + size - 1 along
/// `dim`.
struct TensorPart {
  int64_t dim = -1;  ///< -1: the whole tensor
  int64_t first = 0;
  int64_t total = 0;  ///< along `dim`, all ranks together
  bool is_whole() const { return dim < 0; }
  /// The part of `whole` that has `shape`, a view.
  at::Tensor of(const at::Tensor& whole, at::IntArrayRef shape) const {
    return is_whole() ? whole : whole.narrow(dim, first, shape[dim]);
  }
  /// Of one row of a stack, this being the part of the stack: the same a dim lower.
  TensorPart of_row() const { return is_whole() ? *this : TensorPart{dim - 1, first, total}; }
  /// Shape of the tensor of which a part has `shape`.
  std::vector<int64_t> whole_shape(at::IntArrayRef shape) const;
};

struct ParameterInfo {
  /// Hugging Face key; a stack over experts has '*' for the expert: "...mlp.experts.*.gate_proj.lora_A.weight"
  std::string name;
  LayerId layer = LayerId::block(0);  ///< whose way up completes the gradient
  Role role = Role::kWeight;
  Replicas replicas = Replicas::kEverywhere;
  std::string group;             ///< for reports: "attention", "experts", ...
  bool decays = true;            ///< with weight decay; not what has one dimension, of a stack each expert's
  int64_t first_expert = 0;      ///< of a stack: the place of its row 0 in that of all ranks together
  int64_t num_experts = 0;       ///< of a stack: its rows, all ranks together; 0 for a plain tensor
  std::vector<int64_t> experts;  ///< of a stack over some experts: their global numbers, of all ranks; empty: all
  TensorPart part;               ///< of the tensor called `name`
  /// Two stages of a pipeline hold it, the first and the last, and update it alike by the sum of their gradients.
  bool on_first_and_last_stage = false;
  /// of a stack whose adapters PEFT keeps as one tensor for all experts: that tensor's key; empty: one an expert
  std::string joint_name;
  int64_t joint_experts = 0;  ///< of the tensor at joint_name: how many it holds, those without an adapter too

  /// Global number of the expert of a row of a stack.
  int64_t expert(int64_t row) const { return experts.empty() ? first_expert + row : experts[first_expert + row]; }
  /// Of a stack over all experts: over `chosen` alone, in order; empty: over all as before.
  void hold_experts(const std::vector<int64_t>& chosen);
  /// Holds a part only: at the ranks of one place of the tensor axis. Of a stack, known by num_experts, the part of
  /// each expert.
  void hold_part(int64_t dim, int64_t first, int64_t total) {
    replicas = replicas_of(num_experts > 0, /*cut=*/true);
    part = {dim, first, total};
  }
};

class Parameter {
 public:
  /// `initial` becomes the master copy (CPU, fp32 or fp64); the working copy lies on `device` in `compute`. Gradients
  /// add up in `gradients`.
  Parameter(ParameterInfo info, const at::Tensor& initial, at::Device device, at::ScalarType compute,
            at::ScalarType gradients);

  const ParameterInfo& info() const { return info_; }
  const std::string& name() const { return info_.name; }
  int64_t numel() const { return working.numel(); }
  /// Of masters, moments and summed gradients: fp32, or fp64 when compute is fp64.
  at::ScalarType wide_dtype() const;

  /// The whole tensor on the CPU, wide: the number that training starts from. Gone once it was released.
  at::Tensor& master();
  const at::Tensor& master() const { return const_cast<Parameter*>(this)->master(); }
  /// The optimizer holds the master from now on: its bytes are free.
  void release_master() { master_.reset(); }
  /// Copies the master into the working copy, in place: graphs and modules keep their handle.
  void refresh_working();

  /// Adds to the step's gradient; an undefined tensor adds nothing.
  void add_gradient(const at::Tensor& gradient);
  /// Whether anything was added since the last clear_gradient().
  bool has_gradient() const { return gradient_.defined(); }
  /// The step's gradient on the device; zeros when nothing was added.
  at::Tensor& gradient();
  /// Back to nothing added; its bytes are free.
  void clear_gradient() { gradient_.reset(); }

  /// Bytes on the device of `elements` trained numbers' working copies.
  static int64_t working_bytes(int64_t elements, at::ScalarType compute);

  /// From here on the working copy is [sizes] of `storage` from number `first` on; handles stay. `stays`: its numbers
  /// are always there.
  void lay_into(const c10::Storage& storage, int64_t first, bool stays);

  /// Whether the working copy always has its numbers, and not while its layer is in use alone.
  bool stays() const { return stays_; }

  /// Autograd leaf on the device, compute dtype. A weight's has its numbers while its layer is in use, and always where
  /// it lies whole on the device (trainer/update/trained_slabs.h).
  at::Tensor working;

 private:
  ParameterInfo info_;
  at::ScalarType gradients_;
  bool stays_ = true;
  at::Tensor master_;
  at::Tensor gradient_;
};

/// All that trains on this rank, in an order that is the same on every rank of a replica group.
class ParameterSet {
 public:
  /// `gradients`: what those of layers' matrices add up in, where they are weights; all others do in a wide dtype.
  ParameterSet(at::Device device, at::ScalarType compute, std::optional<at::ScalarType> gradients = std::nullopt)
      : device_(device), compute_(compute), gradients_(gradients.value_or(accumulate_dtype(compute))) {}
  Parameter& add(ParameterInfo info, const at::Tensor& initial);
  std::deque<Parameter>& all() { return parameters_; }
  const std::deque<Parameter>& all() const { return parameters_; }
  std::vector<Parameter*> of_layer(LayerId layer);
  /// Lowest layer with a parameter; `otherwise` when nothing trains.
  LayerId lowest_layer(LayerId otherwise) const;
  at::Device device() const { return device_; }
  at::ScalarType compute() const { return compute_; }
  /// What the gradients of a parameter add up in: `narrow`, or wide. Sums over few numbers, over tokens of one kind
  /// (embedding) or over chunks (head) would lose too much.
  static at::ScalarType gradient_dtype(LayerId layer, Role role, bool decays, at::ScalarType narrow,
                                       at::ScalarType compute);

 private:
  std::deque<Parameter> parameters_;  // a deque: references stay valid as it grows
  at::Device device_;
  at::ScalarType compute_, gradients_;
};

}  // namespace moetune
