// Writes a model folder in Hugging Face layout: safetensors in shards with an index, config.json, tokenizer files.
//
//   // one tensor in memory
//   write_model(folder, specs, [&](const SafetensorsWriter::Spec& spec) { return make(spec.name); });
//   write_model_config(source, folder, specs);
//   copy_companions(source, folder);
#pragma once

#include <torch/types.h>

#include <filesystem>
#include <functional>
#include <vector>

#include "parallel/bytes/safetensors.h"

namespace moetune {

/// Bytes of tensors in a shard: what transformers writes.
inline constexpr std::uint64_t kShardBytes = 5'000'000'000;

struct WrittenModel {
  int64_t num_files = 0, parameters = 0;
  std::uint64_t bytes = 0;  ///< of tensors
};

/// Writes the tensors of `specs`, in their order but wider dtypes first within a shard, into model.safetensors, or into
/// shards of at most `shard_bytes` (one tensor is never split) and model.safetensors.index.json. `make` is called once
/// a tensor and returns it with the dtype and shape of its spec.
WrittenModel write_model(const std::filesystem::path& folder, const std::vector<SafetensorsWriter::Spec>& specs,
                         const std::function<at::Tensor(const SafetensorsWriter::Spec&)>& make,
                         std::uint64_t shard_bytes = kShardBytes);

/// config.json of `source` without quantization_config, its dtype that of most of the bytes of `specs`.
void write_model_config(const std::filesystem::path& source, const std::filesystem::path& folder,
                        const std::vector<SafetensorsWriter::Spec>& specs);

/// config.json of `source` as it is, quantization_config included.
void copy_model_config(const std::filesystem::path& source, const std::filesystem::path& folder);

/// Copies what belongs to a model beside config.json and weights: tokenizer, chat template, generation_config.json, the
/// code that config.json may name, licences. Returns the names.
std::vector<std::string> copy_companions(const std::filesystem::path& source, const std::filesystem::path& folder);

}  // namespace moetune
