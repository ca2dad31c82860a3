// What training made, in the formats that other programs load: the adapter as PEFT keeps it, or the weights in Hugging
// Face layout.
//
//   std::cout << export_adapter("runs/v3-attention", "exports/v3", AdapterReader::kPeft);
//   std::cout << export_base("runs/v3-attention", "exports/v3-base");
//
// RUN is a run folder, of which the newest whole checkpoint is taken, or one of its checkpoints. The folder to write to
// is new, empty or an earlier export (staged_folder.h), and is left whole or untouched. Each function returns what it
// has to say to the user: what was written, and what of it known readers ignore. One process, no MPI.
#pragma once

#include <filesystem>
#include <string>

#include "trainer/exports/model_writer.h"
#include "trainer/exports/readers.h"

namespace moetune {

/// Writes adapter_config.json and adapter_model.safetensors (fp32, tensors streamed), with what PEFT takes of the parts
/// that trained themselves (modules_to_save), and router_bias.safetensors where training moved the biases. `base_name`
/// is what the config names as base model; empty: the recipe's model.path. UserError for a run without adapter, for a
/// reader that is not known to load adapters of the family or what trained beside them, and for adapters that the model
/// has no map for.
std::string export_adapter(const std::filesystem::path& run, const std::filesystem::path& to, AdapterReader reader,
                           const std::string& base_name = "");

/// Writes a model folder: what trained itself as training left it, and the frozen weights as they were trained on, that
/// is quantised by the code that training uses and made dense again. Adapters are not in it. bf16 where the run
/// computed in bf16 (the numbers that the layers saw, exactly), fp32 where it computed in fp32 or fp64. Correction
/// biases are those after training. Tensors of the source that the run had no use for (an MTP module that was off) are
/// copied. In memory is a tensor at a time, in the dtypes that it comes from and goes to; files as write_model() splits
/// them.
std::string export_base(const std::filesystem::path& run, const std::filesystem::path& to,
                        std::uint64_t shard_bytes = kShardBytes);

}  // namespace moetune
