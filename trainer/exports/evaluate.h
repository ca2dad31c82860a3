// moetune evaluate: the held-out loss of a run's model, or of a model as it is, in all and by document.
//
//   evaluate_model("runs/v3-attention", "data/heldout.jsonl", {"model.base=bf16"}, "losses.jsonl", launch);
#pragma once

#include <string>
#include <vector>

#include "parallel/comm/launch.h"
#include "trainer/recipe/recipe.h"

namespace moetune {

/// Prints loss, target tokens and perplexity on rank 0 and writes to `to`, where it is not empty, a JSON line for each
/// document with targets: {"document", "loss", "target_tokens"}, documents numbered from 0 in the order of the data.
/// Collective over the job; returns the exit code.
int evaluate_model(const std::string& path, const std::string& data, const std::vector<std::string>& overrides,
                   const std::string& to, Launch& launch);

}  // namespace moetune
