// Which programs load an adapter of which family, and what they call its parts: facts about others, in one place.
//
//   const FamilyReaders& readers = readers_of("mixtral");
//   require_reader(blueprint, AdapterReader::kSglang);       // UserError where none is known
//
// Sources: peft 0.21 and transformers 5.17, run; vllm/lora and vllm/model_executor/models, sglang/srt/lora, read.
#pragma once

#include <array>
#include <string>
#include <string_view>

#include "moe/blueprint.h"

namespace moetune {

/// Whose habits an adapter is written for.
enum class AdapterReader {
  kPeft,  ///< as trained, a pair a map and expert: each map its rank, alpha, rsLoRA as the recipe says
  /// experts as transformers 5 holds them, all of a layer in one parameter that PEFT wraps (target_parameters); scales
  /// folded into B
  kPeft3d,
  /// one rank for all maps, the scale folded into B and lora_alpha = r, zeros for untrained maps of what is packed
  kVllm,
  kSglang,  ///< the same with SGLang's packs
};
constexpr std::array<std::string_view, 4> words_of(AdapterReader) { return {"peft", "peft3d", "vllm", "sglang"}; }
std::string to_string(AdapterReader reader);
/// What a person calls whoever reads it.
std::string_view program_of(AdapterReader reader);
/// UserError for a word that is none of them.
AdapterReader adapter_reader(const std::string& word);

struct FamilyReaders {
  /// What PEFT makes of adapters of single experts when it loads them into transformers 5.
  enum class PeftExperts {
    kFused,    ///< stacks them, gate and up on one rank; takes all maps that have the names of experts' for experts'
    kDropped,  ///< passes over them without a word
    kJoint,    ///< they are one tensor in the file too
  };
  std::string_view model_type;
  PeftExperts peft_experts;
  std::string_view sparse;  ///< what transformers calls the part of a layer that holds the experts
  /// transformers holds stacks as [E, I, O] and does not say so: PEFT takes O for what A multiplies
  bool outputs_for_inputs;
  bool sglang;
};

/// InternalError for a model_type that moe/families does not know.
const FamilyReaders& readers_of(const std::string& model_type);
/// UserError, naming family and reader, where no version of `reader` is known to load adapters of the family.
void require_reader(const Blueprint& blueprint, AdapterReader reader);

/// What vLLM takes as --max-lora-rank for adapters of rank `rank`. UserError where it takes none so large.
int64_t vllm_max_rank(int64_t rank);

}  // namespace moetune
