// Checkpoints: all that a run needs to go on as if it had never stopped, written so that a crash at any instant loses
// nothing saved.
//
//   Checkpoints checkpoints(run_dir / "checkpoints", mesh);
//   checkpoints.save(step, state, keep_last);                          // collective; keeps state.best too
//   std::optional<int64_t> step = checkpoints.load_latest(state);      // collective; nothing saved: none
//
//   checkpoints/step-00000100/
//     manifest.json                  step, mesh, digests, SHA-256 and size of every file; written last (manifest.h)
//     state-00000-of-00008.safetensors   by rank: its shards of masters and both moments, in the optimizer's precision
//                                    (trainer/state/saved_state.h); that of rank 0 also the biases of the routers
//     recipe.yaml, config.json       the resolved recipe and the model's, to compare a resumed run's with
//
// Files go to a folder with a temporary name, are fsynced, then the folder is renamed. Data order and randomness are
// functions of (seed, step), so the step number is their whole state. Loading puts tensors together from whatever mesh
// wrote them. Ranks share the run folder's file system.
#pragma once

#include <filesystem>
#include <optional>
#include <string>

#include "moe/model.h"
#include "parallel/comm/mesh.h"
#include "trainer/state/saved_state.h"
#include "trainer/update/optimizer.h"

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
  std::string config_text;       ///< the model's config.json; empty: none is saved
  std::optional<BestStep> best;  ///< written with each checkpoint; on loading, as it was then
};

class Checkpoints {
 public:
  /// `token`: of the run, the same on all ranks; ranks of another run that are still ending write elsewhere.
  Checkpoints(std::filesystem::path folder, Mesh& mesh, std::string token = "")
      : folder_(std::move(folder)), mesh_(mesh), token_(std::move(token)) {}

  /// Saves after `step` steps, a pending update completed first, and removes all but the newest `keep_last` (at least
  /// 1) of the checkpoints up to this one, and state.best. Collective.
  void save(int64_t step, TrainingState& state, int64_t keep_last);
  /// Restores the newest checkpoint whose manifest and digests hold, warning of newer damaged ones, and returns its
  /// step; none if there is no checkpoint at all. Throws UserError when all are damaged, or the run's parameters, data,
  /// seed, batch or frozen weights differ from those that were saved. Collective.
  std::optional<int64_t> load_latest(TrainingState& state);

 private:
  /// Writes this rank's file, if it has anything to save, and returns its name.
  std::string write_own_file(const std::filesystem::path& folder, TrainingState& state);
  void restore(const SavedState& saved, TrainingState& state);

  std::filesystem::path folder_;
  Mesh& mesh_;
  std::string token_;
};

/// Sets the trained tensors and router biases of `model`, whose masters no optimizer has taken over, and nothing else.
/// Not collective.
void load_weights(const SavedState& saved, Model& model);

}  // namespace moetune
