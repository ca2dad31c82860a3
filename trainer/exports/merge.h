// The adapter of a run merged into the weights of the original model: W + s B A, in Hugging Face layout, for any
// program that loads the model.
//
//   std::cout << merge_adapter("runs/v3-attention", "merged/v3");
#pragma once

#include <array>
#include <filesystem>
#include <string>
#include <string_view>

namespace moetune {

/// What a merged model is written in.
enum class MergeFormat {
  kHf,  ///< every tensor in its own dtype; FP8 and MXFP4 blocks, which no sum fits into, as bf16
  /// FP8 blocks stay FP8 blocks: those without an adapter bit for bit, those with one with new scales
  kHfFp8,
};
constexpr std::array<std::string_view, 2> words_of(MergeFormat) { return {"hf", "hf-fp8"}; }
/// UserError for a word that is none of them.
MergeFormat merge_format(const std::string& word);

/// Writes every tensor of the run's model: those with an adapter as W + s B A, computed in fp32 and rounded once to the
/// dtype of W, correction biases as training left them, all others bit for bit as they were, laid down as the family's
/// checkpoints are; tokenizer files; config.json, without quantization_config but in kHfFp8. W is the original weight,
/// not its NF4 form. `to` is new, empty or an earlier export. Returns what was changed and by how much, with a warning
/// for each tensor whose delta the rounding disturbs by more than a tenth of its norm. UserError for a run without
/// adapter, for adapters that the model has no tensor for, and for kHfFp8 of a model that is not in FP8 blocks.
std::string merge_adapter(const std::filesystem::path& run, const std::filesystem::path& to,
                          MergeFormat format = MergeFormat::kHf);

}  // namespace moetune
