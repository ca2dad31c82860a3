#include "trainer/exports/readers.h"

#include "parallel/base/error.h"

namespace moetune {
namespace {

using Peft = FamilyReaders::PeftExperts;

// vLLM loads adapters of all of them (DeepseekV2ForCausalLM serves deepseek_v2 to glm_moe_dsa; LoRA of Llama-4 since
// its pull request 28602, of MiniMax-M2 by the class's SupportsLoRA). SGLang knows the leaf names of experts
// gate_proj, up_proj, down_proj alone, and computes their widths from the keys of these families' config.json.
constexpr FamilyReaders kReaders[] = {
    {"deepseek_v2", Peft::kFused, "mlp", false, true},
    {"deepseek_v3", Peft::kFused, "mlp", false, true},
    {"deepseek_v32", Peft::kFused, "mlp", false, true},
    {"dots1", Peft::kFused, "mlp", false, false},
    {"glm4_moe", Peft::kFused, "mlp", false, true},
    {"glm4_moe_lite", Peft::kFused, "mlp", false, true},
    {"glm_moe_dsa", Peft::kFused, "mlp", false, true},
    {"gpt_oss", Peft::kJoint, "mlp", false, false},
    {"kimi_k2", Peft::kFused, "mlp", false, true},
    {"llama4", Peft::kDropped, "feed_forward", true, false},
    {"llama4_text", Peft::kDropped, "feed_forward", true, false},
    {"minimax_m2", Peft::kFused, "mlp", false, false},
    {"mixtral", Peft::kFused, "mlp", false, false},
    {"olmoe", Peft::kFused, "mlp", false, false},
    {"qwen2_moe", Peft::kDropped, "mlp", false, true},
    {"qwen3_moe", Peft::kFused, "mlp", false, true},
};

}  // namespace

std::string to_string(AdapterReader reader) { return std::string(words_of(reader)[static_cast<size_t>(reader)]); }

std::string_view program_of(AdapterReader reader) {
  return reader == AdapterReader::kVllm ? "vLLM" : reader == AdapterReader::kSglang ? "SGLang" : "transformers";
}

AdapterReader adapter_reader(const std::string& word) {
  const auto words = words_of(AdapterReader::kPeft);
  for (size_t i = 0; i < words.size(); ++i) {
    if (word == words[i]) return static_cast<AdapterReader>(i);
  }
  throw UserError(str("--for ", word, ": want peft, peft3d, vllm or sglang"));
}

const FamilyReaders& readers_of(const std::string& model_type) {
  for (const FamilyReaders& readers : kReaders) {
    if (readers.model_type == model_type) return readers;
  }
  throw InternalError(str("nothing is known of what reads adapters of ", model_type));
}

void require_reader(const Blueprint& blueprint, AdapterReader reader) {
  if (reader != AdapterReader::kSglang || readers_of(blueprint.model_type).sglang) return;
  std::string known;
  for (const FamilyReaders& readers : kReaders) {
    if (readers.sglang) known += str(known.empty() ? "" : ", ", readers.model_type);
  }
  throw UserError(str("--for sglang: no version of SGLang is known to load adapters of the experts of ",
                      blueprint.model_type, " (it is of ", known,
                      "); export with --for vllm, or merge and serve the merged model"));
}

int64_t vllm_max_rank(int64_t rank) {
  for (const int64_t allowed : {1, 8, 16, 32, 64, 128, 256, 320, 512}) {
    if (rank <= allowed) return allowed;
  }
  throw UserError(str("--for vllm: the adapter has rank ", rank, ", and vLLM loads ranks up to 512; merge instead"));
}

}  // namespace moetune
