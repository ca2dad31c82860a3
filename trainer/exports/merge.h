// The adapter of a run merged into the weights of the original model: W + s B A, in Hugging Face layout, for any
// program that loads the model.
//
//   std::cout << merge_adapter("runs/v3-attention", "merged/v3");
#pragma once

#include <filesystem>
#include <string>

namespace moetune {

/// Writes every tensor of the run's model: those with an adapter as W + s B A, computed in fp32 and rounded once to the
/// dtype of W (FP8 blocks become bf16), correction biases as training left them, all others bit for bit as they were;
/// config.json without quantization_config, tokenizer files. W is the original weight, not its NF4 form. `to` is new,
/// empty or an earlier export. Returns what was changed and by how much, with a warning for each tensor whose delta the
/// rounding disturbs by more than a tenth of its norm. UserError for a run without adapter and for adapters that the
/// model has no tensor for.
std::string merge_adapter(const std::filesystem::path& run, const std::filesystem::path& to);

}  // namespace moetune
