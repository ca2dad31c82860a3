// The ranks of the job as a grid with named axes: world = PP x DP x EP x TP, TP varying fastest, so that the axes that
// talk most stay inside a node.
//
//   // dp 0: what is left
//   const MeshShape shape = resolve_mesh({.pp = 1, .dp = 0, .ep = 8, .tp = 1}, launch.world_size());
//   Mesh mesh(launch, shape);     // every rank of the job
//   mesh.ep().all_to_all_v(...);  // ranks that hold different experts of one replica
//   mesh.expert_replicas().all_reduce_sum(...);  // ranks that hold the same experts
//   TensorAxis axis(mesh.tp());   // ranks that hold parts of the same matrices (parallel/comm/tensor_axis.h)
//
// parallel/ knows ranks and bytes; which tensors are equal along which axis is for its callers to know.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "parallel/comm/communicator.h"

namespace moetune {

class Launch;

/// Ranks along each axis: pipeline stages, data replicas, expert parallel, tensor parallel.
struct MeshShape {
  int64_t pp = 1;
  int64_t dp = 0;  ///< 0 in a request: auto, as many as the other axes leave
  int64_t ep = 1;
  int64_t tp = 1;
  int64_t expert_tp = 1;  ///< ranks of a tensor-parallel group that share each expert: 1, or all of them (tp)
  int64_t num_ranks() const { return pp * dp * ep * tp; }
  bool operator==(const MeshShape&) const = default;
};

/// "pp 1 x dp 2 x ep 4 x tp 1"; with "(expert tp 2)" behind it where experts are shared.
std::string to_string(const MeshShape& shape);

/// The requested shape with dp filled in, for world_size ranks. UserError, naming the recipe's keys and all mistakes at
/// once, where an axis is below 1 or the product is not world_size.
/// `mistakes`: what the caller found already, told in the same error.
MeshShape resolve_mesh(MeshShape requested, int64_t world_size, std::vector<std::string> mistakes = {});

/// A rank's place along each axis.
struct MeshCoordinates {
  int64_t pp = 0;
  int64_t dp = 0;
  int64_t ep = 0;
  int64_t tp = 0;
  bool operator==(const MeshCoordinates&) const = default;
};
MeshCoordinates coordinates_of(const MeshShape& shape, int64_t rank);
int64_t rank_at(const MeshShape& shape, const MeshCoordinates& place);

class Mesh {
 public:
  /// Makes the groups, on launch.device(). All ranks of the job call it. A shape of fewer ranks than the job has is
  /// made of the first ones; each other rank gets a mesh of its own, of one rank. The mesh must not outlive the launch.
  Mesh(Launch& launch, const MeshShape& shape);

  const MeshShape& shape() const { return shape_; }
  /// The job's number of the mesh's rank 0.
  int64_t first_rank() const { return first_rank_; }
  /// Where this rank stands.
  const MeshCoordinates& here() const { return here_; }

  // In each group, ranks are ordered as in the world. Groups are separate communicators even where they have the same
  // ranks, so that what each axis sends can be counted.

  /// All ranks.
  Communicator& world() { return *world_; }
  /// Ranks that hold different experts of one replica: EP varies; rank() is here().ep.
  Communicator& ep() { return *ep_; }
  /// Ranks that hold parts of the same matrices and walk the same documents: TP varies; rank() is here().tp.
  Communicator& tp() { return *tp_; }
  /// Ranks at the same place of the expert and the tensor axis: DP varies; rank() is here().dp. Where a tensor-parallel
  /// group shares each expert, they hold the same part of the same experts.
  Communicator& dp() { return *dp_; }
  /// Ranks that hold the same experts, or parts of them: DP and TP vary.
  Communicator& expert_replicas() { return *expert_replicas_; }
  /// Ranks that take different data: DP and EP vary; rank() is the index of this rank's share of the batch.
  Communicator& data() { return *data_; }
  /// Ranks that hold the same layers: DP, EP and TP vary.
  Communicator& stage() { return *stage_; }
  /// Ranks at the same place of every stage, which take the same documents: PP varies; rank() is here().pp.
  Communicator& pp() { return *pp_; }
  /// Those of the first and the last stage; of a stage between them this rank alone.
  Communicator& ends() { return *ends_; }

 private:
  int64_t first_rank_;
  MeshShape shape_;
  MeshCoordinates here_;
  std::unique_ptr<Communicator> world_;
  std::unique_ptr<Communicator> ep_;
  std::unique_ptr<Communicator> tp_;
  std::unique_ptr<Communicator> dp_;
  std::unique_ptr<Communicator> expert_replicas_;
  std::unique_ptr<Communicator> data_;
  std::unique_ptr<Communicator> stage_;
  std::unique_ptr<Communicator> pp_;
  std::unique_ptr<Communicator> ends_;
};

}  // namespace moetune
