// Gradients of a step: summed over replicas layer by layer on the way up, their norm gathered on the way, and checked.
//
//   GradientReducer reducer(parameters, mesh);
//   sweep.train(batch, random, [&](int64_t layer) { reducer.reduce(layer); });
//   double norm = reducer.global_norm();      // over every distinct parameter once; throws NonFiniteError
#pragma once

#include <array>

#include "lora/parameter.h"
#include "parallel/mesh.h"

namespace moetune {

class GradientReducer {
 public:
  GradientReducer(ParameterSet& parameters, Mesh& mesh) : parameters_(parameters), mesh_(mesh) {}

  /// Sums the gradients of a layer over the ranks that hold copies (trainer/replica_groups.h). One collective for each kind and layer.
  /// Collective over the mesh.
  void reduce(int64_t layer);
  /// Norm of the whole step's gradient, each distinct number counted once: of what is held in parts, squares are summed over the parts.
  /// Starts the next step. Throws NonFiniteError naming step and the first rank whose own part was not finite. Collective.
  double global_norm(int64_t step);
  /// Bytes that reducing `elements` gradients of one layer takes for its duration.
  static int64_t bytes(int64_t elements, at::ScalarType compute);

 private:
  static constexpr std::array<Replicas, 3> kKinds = {Replicas::kEverywhere, Replicas::kTensorIndex, Replicas::kExpertReplicas};
  void reduce_group(const std::vector<Parameter*>& parameters, Communicator& replicas, at::Tensor& square_sum);

  ParameterSet& parameters_;
  Mesh& mesh_;
  at::Tensor local_sum_;           ///< sum of this rank's own gradients before any exchange: finite where they all are
  std::array<at::Tensor, kKinds.size()> squares_;  ///< after the exchange, by kind
};

}  // namespace moetune
