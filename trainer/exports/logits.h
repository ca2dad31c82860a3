// Logits of a trained model, for comparing another reader of its exports with the run itself.
//
//   write_logits("runs/quickstart", "data/heldout.jsonl", 8, "logits.safetensors", launch);
#pragma once

#include <string>

#include "parallel/comm/launch.h"

namespace moetune {

/// Runs the model of a run folder's newest whole checkpoint (or of the checkpoint named) over the first `num_documents`
/// documents of `data` and writes input_ids I64 [n], positions I64 [n] and logits F32 [n, V], document after document.
/// On one rank, which holds all experts, whatever mesh the run had.
void write_logits(const std::string& run, const std::string& data, int64_t num_documents, const std::string& to,
                  Launch& launch);

}  // namespace moetune
