// Gradients of a step: summed over replicas layer by layer on the way up, each rank keeping the sum of its own part in
// host memory; their norm gathered on the way, and checked.
//
//   GradientReducer reducer(partition, mesh);
//   hooks.done = [&](LayerId layer) { reducer.reduce(layer); };
//   double norm = reducer.global_norm(step);       // over every distinct number once; throws NonFiniteError
//   optimizer.step(lr, factor, reducer.gradients());
#pragma once

#include "trainer/update/partition.h"

namespace moetune {

class GradientReducer {
 public:
  GradientReducer(const Partition& partition, Mesh& mesh);

  /// Sums the gradients of a layer over the ranks that hold copies, one reduce-scatter for each kind of replicas; the
  /// parameters' gradients are cleared. Collective over the mesh.
  void reduce(LayerId layer);
  /// Norm of the whole step's gradient, each distinct number counted once; waits for the device, so that gradients() is
  /// final. Starts the next step. Throws NonFiniteError naming step and the first rank whose own part was not finite.
  /// Collective.
  double global_norm(int64_t step);
  /// Starts a step anew: what was reduced counts for nothing.
  void forget();
  /// By group of the partition: this rank's shard of the summed gradient, wide, on the host. Overwritten by the next
  /// way up.
  const std::vector<at::Tensor>& gradients() const { return gradients_; }

  /// Bytes on the device that reducing `elements` gradients of one layer over `ranks` takes for its duration, beside
  /// the gradients.
  static int64_t bytes(int64_t elements, int64_t ranks, at::ScalarType compute);

 private:
  void reduce_group(size_t index);

  const Partition& partition_;
  Mesh& mesh_;
  std::vector<at::Tensor> gradients_;
  at::Tensor local_sum_;  ///< sum of this rank's own gradients before any exchange: finite where they all are
  at::Tensor squares_;    ///< of this rank's shards after it
};

}  // namespace moetune
