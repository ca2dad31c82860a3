// Gradients of a step: summed over replicas layer by layer on the way up, each rank keeping the sum of its own part, on
// the device or in host memory; their norm gathered on the way, and checked.
//
//   GradientReducer reducer(partition, mesh, SlabTier::kHost);
//   hooks.done = [&](LayerId layer) { reducer.reduce(layer); };
//   double norm = reducer.global_norm(step);       // over every distinct number once; throws NonFiniteError
//   optimizer.step(lr, factor, reducer.gradients());
#pragma once

#include "parallel/bytes/weight_store.h"
#include "parallel/device/side_stream.h"
#include "trainer/update/partition.h"

namespace moetune {

class GradientReducer {
 public:
  /// `tier`: where the sums lie.
  GradientReducer(const Partition& partition, Mesh& mesh, SlabTier tier);

  /// Sums the gradients of a layer over the ranks that hold copies, one reduce-scatter for each kind of replicas; the
  /// parameters' gradients are cleared. Collective over the mesh.
  void reduce(LayerId layer);
  /// Norm of the whole step's gradient, each distinct number counted once; waits for the device, so that gradients() is
  /// final. Starts the next step. Throws NonFiniteError naming step and the first rank whose own part was not finite.
  /// Collective.
  double global_norm(int64_t step);
  /// Starts a step anew: what was reduced counts for nothing.
  void forget();
  /// By group of the partition: this rank's shard of the summed gradient, wide. Overwritten by the next way up.
  const std::vector<at::Tensor>& gradients() const { return gradients_; }

  /// Bytes of the sums of so many numbers of a rank's shards.
  static int64_t sum_bytes(int64_t shard_numbers, at::ScalarType compute);
  /// Bytes on the device that reducing `elements` gradients of one layer over `ranks` takes for its duration, beside
  /// gradients and sums.
  static int64_t bytes(int64_t elements, int64_t ranks, at::ScalarType compute);

 private:
  void reduce_group(size_t index);

  const Partition& partition_;
  Mesh& mesh_;
  std::vector<at::Tensor> gradients_;
  // Sums for host memory leave from one place on the device, beside what is computed next.
  at::Tensor leaving_;  ///< as long as the longest shard; undefined where sums stay on the device, or it is the host
  SideStream copies_;
  StreamPoint left_;
  at::Tensor local_sum_;  ///< sum of this rank's own gradients before any exchange: finite where they all are
  at::Tensor squares_;    ///< of this rank's shards after it
};

}  // namespace moetune
