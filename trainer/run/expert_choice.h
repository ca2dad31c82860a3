// The experts that adapter.experts: top N gives adapters to, and of which train.experts: top N trains the weights: of
// each layer those that the training data goes to most, by the number of tokens that chose them (expert-specialised
// fine-tuning, Wang et al. 2024, equation 6).
//
//   const ChosenExperts chosen = experts_by_load(run, batches, num_steps, 8);   // a way down over the data
//   choose_experts(run, chosen.experts);                                        // trainer/assemble.h
//   write_text_atomically("runs/a/experts.json", to_json(chosen));
#pragma once

#include <filesystem>
#include <string>
#include <vector>

#include "lora/adapters/narrowing.h"
#include "trainer/assemble.h"
#include "trainer/data/batches.h"

namespace moetune {

struct ChosenExperts {
  ExpertsOfLayers experts;
  std::map<int64_t, double> share = {};  ///< by layer: of all choices of experts those that fell on these
  int64_t tokens = 0;                    ///< that were counted
  /// For the log, a line a layer; `key` of the recipe asked for them.
  std::vector<std::string> lines(const std::string& key) const;
};

/// Counts the loads of the first `num_steps` global batches, on experts as they were read, and chooses `count` of each
/// layer that has any to choose. The same on every rank. Collective over the mesh.
/// `progress`, if given, is told which layer is at work.
ChosenExperts experts_by_load(Assembly& run, Batches& batches, int64_t num_steps, int64_t count,
                              RankProgress* progress = nullptr);
/// Those of the newest readable checkpoint in a folder. UserError where there is none.
ExpertsOfLayers saved_experts(const std::filesystem::path& checkpoints);

/// {"tokens": 4096, "layers": {"3": {"experts": [0, 17], "share": 0.8}}}
std::string to_json(const ChosenExperts& chosen);
ChosenExperts parse_chosen_experts(const std::string& json);

}  // namespace moetune
