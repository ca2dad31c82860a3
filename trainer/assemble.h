// Puts the program together from a recipe: mesh, exchange, adapters, model. The one place that knows who runs where.
//
//   Assembly run = assemble(recipe, launch);
//   Sweep sweep(*run.model, run.sweep_options);
#pragma once

#include <memory>
#include <optional>

#include "moe/model.h"
#include "parallel/bytes/weight_store.h"
#include "parallel/comm/launch.h"
#include "parallel/comm/mesh.h"
#include "trainer/plan/memory_plan.h"
#include "trainer/recipe/recipe_meaning.h"
#include "trainer/state/weight_cache.h"
#include "trainer/sweep/sweep.h"
#include "trainer/update/trained_slabs.h"

namespace moetune {

struct Assembly {
  Blueprint blueprint;
  std::unique_ptr<Mesh> mesh;
  std::unique_ptr<TokenExchange> exchange;
  Machine machine;
  StepRows rows;    ///< that are planned for
  MemoryPlan plan;  ///< of this rank's stage
  std::vector<MemoryPlan> stage_plans;
  std::unique_ptr<ShardGroups> shards;
  std::unique_ptr<WeightStore> store;
  std::unique_ptr<SlabCache> cache;  ///< null: none is asked for
  std::unique_ptr<FrozenSlabs> slabs;
  std::unique_ptr<AdapterTargets> targets;
  /// Of weights that train once loads have chosen their experts; null: all are read.
  std::unique_ptr<WeightSource> source;
  std::unique_ptr<Model> model;
  std::unique_ptr<TrainedSlabs> trained;  ///< where weights that train lie
  WeightLoad load;
  SweepOptions sweep_options;
  at::Device device = at::kCPU;
  at::ScalarType compute = at::kFloat;
  int64_t slice_tokens = 0;
  std::unique_ptr<StageLinks> links;
  int64_t groups = 1;  ///< of documents, in which a rank's part of a step goes through the model
};

/// What no recipe says, since no result depends on it. Tests choose it so that there are several chunks of everything
/// that comes in chunks, and a read after release shows.
struct AssemblyOptions {
  int64_t head_chunk_rows = ModelOptions().head_chunk_rows;
  int64_t expert_chunk_bytes = ModelOptions().expert_chunk_bytes;
  bool poison_released = false;  ///< SweepOptions
};

/// Who shares slabs, and which of them lie in host memory, as `weights` decided. `shards` must outlive its users.
SlabPlacement slab_placement(const WeightPlacement& weights, const ShardGroups& shards);
/// The ranks that share each of this rank's experts: its tensor axis, or itself alone.
TensorAxis expert_axis(Mesh& mesh);
/// Chooses the device and threads, makes the mesh, plans memory and builds the model, reading weights with progress on
/// rank 0. `rows`: those of the run's data, where they are known. Collective over the job.
/// Throws UserError for what recipe, checkpoint and mesh do not agree on.
Assembly assemble(const Recipe& recipe, Launch& launch, const StepRows& rows = {}, const AssemblyOptions& options = {});
/// The same for a model and a mesh that are not the recipe's own, saying nothing.
Assembly assemble_on(std::unique_ptr<Mesh> mesh, const Recipe& recipe, const Blueprint& blueprint, Launch& launch);
/// Plans anew where `train.keep: auto` has so much less of the device than was planned with, which must be the same on
/// all ranks. What was placed stays where it lies: run.plan.kept is what changes.
void withhold(int64_t bytes, const Recipe& recipe, Assembly& run);
/// Completes a model of which something waits for the choice of its experts.
void choose_experts(Assembly& run, const ExpertsOfLayers& experts);
/// Masters and working copies as the adapter in the folder adapter.from has them, where the recipe names one. Adapters
/// whose experts loads choose must be there by then (choose_experts). Collective over the stages.
void load_adapter_from(const Recipe& recipe, Assembly& run);
/// Chooses device, threads and determinism as the recipe says. Once, before anything is made on the device.
void set_up_process(const Recipe& recipe, Launch& launch);

}  // namespace moetune
