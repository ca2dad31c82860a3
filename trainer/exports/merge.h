// What a run trained as a model of its own, in Hugging Face layout, for any program that loads the original: the
// adapter merged into the weights, W + s B A, or with `adapter: none` the weights that were trained.
//
//   std::cout << merge_run("runs/v3-attention", "merged/v3");
#pragma once

#include <array>
#include <filesystem>
#include <string>
#include <string_view>

#include "trainer/exports/model_writer.h"

namespace moetune {

/// What a merged model is written in.
enum class MergeFormat {
  kHf,  ///< every tensor in its own dtype; FP8 and MXFP4 blocks, which no sum fits into, as bf16
  /// FP8 blocks stay FP8 blocks: what did not change bit for bit, what did with new scales
  kHfFp8,
};
constexpr std::array<std::string_view, 2> words_of(MergeFormat) { return {"hf", "hf-fp8"}; }
/// UserError for a word that is none of them.
MergeFormat merge_format(const std::string& word);

/// Writes every tensor of the run's model: those with an adapter as W + s B A, computed in fp32 and rounded once to the
/// dtype of W, those that trained themselves (train.parts, router.train) as their masters, rounded in the same way,
/// correction biases as training left them, all others bit for bit as they were, laid down as the family's checkpoints
/// are; tokenizer files; config.json, without quantization_config but in kHfFp8. W is the original weight, not its NF4
/// form. `to` is new, empty or an earlier export; files as write_model() splits them. In memory is a tensor at a time,
/// in the dtypes that it comes from and goes to and in fp32. Returns what was changed, and of an adapter by how much,
/// with a warning for each tensor whose delta the rounding disturbs by more than a tenth of its norm. UserError for
/// adapters that the model has no tensor for, and for kHfFp8 of a model that is not in FP8 blocks.
std::string merge_run(const std::filesystem::path& run, const std::filesystem::path& to,
                      MergeFormat format = MergeFormat::kHf, std::uint64_t shard_bytes = kShardBytes);

}  // namespace moetune
