// The bytes that one rank will hold, predicted from config.json and the recipe alone: no device, no weights.
//
//   const MemoryPlan plan = plan_memory(blueprint, recipe, mesh, {.device = at::kCUDA, .device_memory_bytes = ...});
//   plan.device_bytes();  // to compare with the device's memory before the run and with the peak after it
//   log_info(memory_table(plan));
//
// All ranks of an expert- and data-parallel mesh are alike. Each part is a product of shapes that its formula states;
// the functions that compute it stand beside the allocations. Not in it: the device's context, libraries' workspaces,
// rounding of the allocator.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include <c10/core/DeviceType.h>

#include "moe/blueprint.h"
#include "moe/keep.h"
#include "parallel/comm/mesh.h"
#include "trainer/plan/trained_placement.h"
#include "trainer/plan/weight_placement.h"
#include "trainer/recipe/recipe.h"

namespace moetune {

struct MemoryPart {
  /// Held for the whole run, or in one phase of a step: of phases, which follow one another, the largest counts.
  enum class Span { kRun, kPhase };
  std::string name;
  int64_t bytes = 0;
  bool on_host = false;  ///< in host memory even where the run computes on a GPU
  Span span = Span::kRun;
  std::string formula;
};

/// Share of a GPU's memory that what `train.keep: auto` keeps leaves to what no plan knows: the context, workspaces
/// of libraries, pieces between the allocator's blocks.
constexpr double kKeepReserve = 0.08;
/// Of the rows of a chunk of experts over their mean over all chunks, where loads are not even: seen up to 1.18 with
/// tokens at random.
constexpr double kChunkSkew = 1.25;
/// What cuBLAS and cuBLASLt take of the allocator for themselves, each 32 MiB on Hopper.
constexpr int64_t kWorkspaceBytes = int64_t{64} << 20;

/// What trains in a layer on this rank, and how much of it this rank's optimizer updates.
struct TrainedLayer {
  LayerId layer;
  int64_t numbers = 0, shard_numbers = 0;
};

struct MemoryPlan {
  at::DeviceType device = at::kCPU;  ///< on a CPU its memory is the host's
  PipelinePlan pipeline;
  int64_t stage = 0;                         ///< whose ranks this is the plan of
  int64_t step_rows = 0;                     ///< tokens of the fullest rank's documents in its fullest step
  int64_t rows = 0;                          ///< of these the most in a group of documents
  int64_t held_rows = 0;                     ///< T: of these a rank's own, where a tensor axis shares them
  WeightPlacement weights;                   ///< where the packed linear weights lie, and what they move
  TrainedPlacement trained;                  ///< the same of the weights that train
  int64_t plain_bytes = 0;                   ///< embedding, head, norms, router
  int64_t trained_numbers = 0;               ///< on this rank
  int64_t adapter_numbers = 0;               ///< that leave with the adapter, all ranks': its own, parts beside it
  int64_t scratch_elements = 0;              ///< as Model::scratch_elements()
  std::vector<TrainedLayer> trained_layers;  ///< from the embedding up, those that train
  bool saves_beside = false;                 ///< checkpoints are written from a copy while training goes on
  int64_t copied_save_bytes = 0;             ///< of that copy; 0: there is none, or nothing to save
  KeptBlocks kept;                           ///< what blocks keep of their way down
  int64_t kept_bytes = 0;                    ///< that this takes
  int64_t unkept_bytes = 0;                  ///< device_bytes() if nothing were kept, where `train.keep` is auto
  std::vector<std::pair<std::string, int64_t>> trained_by_group;  ///< numbers of the whole model, all ranks together
  std::vector<MemoryPart> parts;

  /// Most bytes at a time on the device, and on the host; on a CPU all of it is on the host.
  int64_t device_bytes() const;
  int64_t host_bytes() const;
};

/// Tokens of the fullest rank's documents in its fullest step, and in the fullest of the groups that they go through a
/// pipeline in; 0: the bound that train.batch and data.max_tokens give.
struct StepRows {
  int64_t step = 0, group = 0;
};

/// The plans for a rank of each stage of a resolved mesh, by stage. `rows`: where the data is known. With
/// `train.keep: auto` blocks keep as much as fits beside a reserve of kKeepReserve of the device's memory and what the
/// machine withholds, by the ladder of KeptBlocks::after(), without moving weights to the host for it; nothing where
/// that memory is not known, as on CPUs. Throws UserError where targets match nothing, for parts that cannot train
/// (require_trained_parts), and where the pipeline cannot be (plan_pipeline).
std::vector<MemoryPlan> plan_stages(const Blueprint& blueprint, const Recipe& recipe, const MeshShape& mesh,
                                    const Machine& machine, const StepRows& rows = {});
/// The plan among these that needs most of the device, on a CPU of the host.
const MemoryPlan& fullest(const std::vector<MemoryPlan>& stages);
/// The fullest of plan_stages().
MemoryPlan plan_memory(const Blueprint& blueprint, const Recipe& recipe, const MeshShape& mesh, const Machine& machine,
                       const StepRows& rows = {});

/// The parts in columns, their sums last: lines of at most 100 columns, without a newline at the end.
std::string memory_table(const MemoryPlan& plan, bool with_formulas);

}  // namespace moetune
