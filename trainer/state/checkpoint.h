// Checkpoints: all that a run needs to go on as if it had never stopped, written so that a crash at any instant loses
// nothing saved.
//
//   Checkpoints checkpoints(run_dir / "checkpoints", mesh, token);
//   checkpoints.save(step, state, keep_last);                          // collective; keeps those of state.best too
//   std::optional<int64_t> step = checkpoints.load_latest(state);      // collective; nothing saved: none
//
//   checkpoints.begin(step, state, keep_last);                         // the same beside training: a copy is taken,
//   ...                                                                // and a thread of each rank writes it
//   if (all ranks have checkpoints.has_done_its_part()) checkpoints.advance();      // between steps, until whole
//   checkpoints.finish();                                              // or wait for it
//
//   checkpoints/step-00000100/
//     manifest.json                  step, mesh, digests, SHA-256 and size of every file; written last (manifest.h)
//     state-00000-of-00008.safetensors   by rank: its shards of masters and both moments, in the optimizer's precision
//                                    (trainer/state/checkpoint_part.h); that of rank 0 also the biases of the routers
//     recipe.yaml, config.json       the resolved recipe and the model's, to compare a resumed run's with
//
// Files go to a folder with a temporary name, are fsynced, then the folder is renamed; only then others are removed.
// Data order and randomness are functions of (seed, step), so the step number is their whole state. Loading puts
// tensors together from whatever mesh wrote them. Ranks share the run folder's file system.
//
// Beside training, no thread but the main one calls MPI or NCCL, and no rank looks into the folder for another's file,
// which a file system that hosts share may show late: the ranks agree in collectives of their main threads, which they
// have at the end of each step anyway, that all parts are written; rank 0's thread then writes the manifest.
#pragma once

#include <chrono>
#include <filesystem>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "moe/model.h"
#include "parallel/comm/mesh.h"
#include "trainer/state/checkpoint_part.h"
#include "trainer/state/saved_state.h"
#include "trainer/update/optimizer.h"
#include "trainer/update/ordered_worker.h"
#include "trainer/update/trained_slabs.h"

namespace moetune {

/// What is saved and restored, and the digests that must agree on the way back.
struct TrainingState {
  Model& model;
  Optimizer& optimizer;
  std::string recipe_text;    ///< the resolved recipe
  std::string frozen_digest;  ///< of the frozen weights
  std::string data_digest;    ///< of tokens and labels
  int64_t seed = 0;
  int64_t batch = 0;
  std::string config_text = {};     ///< the model's config.json; empty: none is saved
  std::vector<BestStep> best = {};  ///< written with each checkpoint; on loading, as it was then
};

class Checkpoints {
 public:
  using Time = std::chrono::steady_clock::time_point;

  /// `token`: of the run, the same on all ranks; ranks of another run that are still ending write elsewhere. `writer`:
  /// what begin() writes with; all ranks have one, or none.
  Checkpoints(std::filesystem::path folder, Mesh& mesh, std::string token = "",
              std::unique_ptr<OrderedWorker> writer = nullptr);
  /// Waits for what this rank is writing; a checkpoint that is not whole by then never will be.
  ~Checkpoints();

  /// Saves after `step` steps, a pending update completed first, and removes all but the newest `keep_last` (at least
  /// 1) of the checkpoints up to this one, and those of state.best. None may be unfinished. Collective.
  void save(int64_t step, TrainingState& state, int64_t keep_last);

  /// Takes the memory that begin() copies to, so that a lack of it shows now. Nothing may be pending. Not collective.
  void reserve(TrainingState& state);
  /// Begins the same: returns when all that is saved is copied in host memory. Needs a writer. Collective.
  void begin(int64_t step, TrainingState& state, int64_t keep_last);
  /// The step of the checkpoint that was begun and is not whole yet. The same on all ranks.
  std::optional<int64_t> unfinished() const;
  /// Whether the unfinished checkpoint waits for nothing that this rank writes; true where there is none. Throws what
  /// writing threw. Not collective.
  bool has_done_its_part();
  /// Goes on with the unfinished checkpoint, now that has_done_its_part() on all ranks; returns when it became whole
  /// (rank 0 knows; on other ranks now), or nothing where it is not yet. Collective.
  std::optional<Time> advance();
  /// Waits until the unfinished checkpoint is whole, and returns when it became so. Collective.
  Time finish();

  /// Restores the newest checkpoint whose manifest and digests hold, warning of newer damaged ones, and returns its
  /// step; none if there is no checkpoint at all. Throws UserError when all are damaged, or the run's parameters, data,
  /// seed, batch or frozen weights differ from those that were saved. Collective.
  std::optional<int64_t> load_latest(TrainingState& state);

 private:
  /// A checkpoint on its way. While a job of the writer runs, it alone touches what it needs.
  struct Unfinished {
    CheckpointPart part;
    Manifest manifest;
    std::string recipe_text, config_text;
    int64_t keep_last;
    std::filesystem::path temporary;
    std::pair<std::string, Manifest::File> own = {};  ///< this rank's file, when it is written
    bool has_all_parts = false;                       ///< all ranks' files are in the manifest
    int64_t ticket = 0;                               ///< of the writer's job
    Time whole_at = {};
  };

  void start(int64_t step, TrainingState& state, int64_t keep_last);
  void write_own_part();
  /// Puts the files of all ranks into the manifest. Collective.
  void collect_parts();
  /// Writes the rest, gives the checkpoint its name, removes others. On rank 0.
  void make_whole();
  void restore(const SavedState& saved, TrainingState& state);
  /// Each tensor once. Collective.
  size_t num_trained_of_all_stages(const Model& model);

  std::filesystem::path folder_;
  Mesh& mesh_;
  std::string token_;
  at::Tensor copy_;  ///< memory of what is being written, kept for the next
  std::optional<Unfinished> unfinished_;
  std::unique_ptr<OrderedWorker> writer_;  // last: it ends before what its jobs touch
};

/// Sets the trained tensors and router biases of `model`, whose masters no optimizer has taken over, and nothing else;
/// its weights lie in `trained`, or, null, each in its own place. Collective over the mesh.
void load_weights(const SavedState& saved, Model& model, TrainedSlabs* trained = nullptr);

}  // namespace moetune
