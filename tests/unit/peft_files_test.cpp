// Adapters in PEFT's files: what goes in comes out, and what this program would compute differently is refused.
#include "tests/support/catch.h"

#include <cmath>
#include <filesystem>

#include <nlohmann/json.hpp>

#include "lora/adapters/adapter.h"
#include "lora/adapters/peft_files.h"
#include "parallel/base/error.h"
#include "parallel/base/files.h"
#include "parallel/bytes/tensor_io.h"
#include "tests/support/message_of.h"
#include "tests/support/numbers.h"
#include "tests/support/temporary_folder.h"

using namespace moetune;
using nlohmann::ordered_json;

namespace {

constexpr double kAlpha = 8.0, kScale = 2.0;  // of rank 4

/// One plain map and two experts of four, from `first_expert`.
struct Maps {
  explicit Maps(int64_t first_expert) {
    ParameterInfo plain, stack;
    plain.name = "model.layers.0.self_attn.o_proj";
    stack.name = "model.layers.1.mlp.experts.*.up_proj";
    stack.first_expert = first_expert;
    stack.num_experts = 4;
    adapters.push_back(std::make_unique<Adapter>(AdapterSpec{4, kScale, 0.0}, plain, 0, 6, 8, 1, parameters));
    adapters.push_back(std::make_unique<Adapter>(AdapterSpec{4, kScale, 0.0}, stack, 2, 6, 8, 1, parameters));
  }
  ParameterSet parameters{at::kCPU, at::kBFloat16};
  std::vector<std::unique_ptr<Adapter>> adapters;
};

PeftConfig config_of_maps() {
  PeftConfig config;
  config.rank = 4;
  config.alpha = 8.0;
  config.target_modules = {"o_proj", "up_proj"};
  config.base_model = "deepseek-ai/DeepSeek-V3";
  return config;
}

std::vector<std::pair<std::string, at::Tensor>> tensors_of_maps() {
  std::vector<std::pair<std::string, at::Tensor>> tensors;
  uint64_t seed = 1;
  auto pair = [&](const std::string& map) {
    tensors.emplace_back("base_model.model." + map + ".lora_A.weight", random_normal({4, 8}, seed++, at::kFloat));
    tensors.emplace_back("base_model.model." + map + ".lora_B.weight", random_normal({6, 4}, seed++, at::kFloat));
  };
  pair("model.layers.0.self_attn.o_proj");
  for (int e = 0; e < 4; ++e) pair("model.layers.1.mlp.experts." + std::to_string(e) + ".up_proj");
  return tensors;
}

struct Files {
  Files() {
    write(tensors_of_maps());
    write_peft_config(folder.path(), config_of_maps());
  }
  void write(const std::vector<std::pair<std::string, at::Tensor>>& tensors) {
    write_tensors(folder / "adapter_model.safetensors", tensors, {{"format", "pt"}});
  }
  void set(const char* key, const ordered_json& value) {
    ordered_json config = ordered_json::parse(read_text_file(folder / "adapter_config.json"));
    config[key] = value;
    write_text_atomically(folder / "adapter_config.json", config.dump());
  }
  std::string refusal(double alpha = kAlpha) {
    Maps maps(0);
    return message_of<UserError>([&] { load_peft_adapter(folder.path(), maps.parameters, alpha, /*rslora=*/false); });
  }
  TemporaryFolder folder;
};

}  // namespace

TEST_CASE("each rank reads its experts, masters in full precision", "[peft_files]") {
  Files files;
  const auto tensors = tensors_of_maps();
  for (const int64_t first : {0, 2}) {
    Maps maps(first);
    load_peft_adapter(files.folder.path(), maps.parameters, kAlpha, /*rslora=*/false);
    CHECK(at::equal(maps.adapters[0]->a().master(), tensors[0].second));
    CHECK(at::equal(maps.adapters[0]->b().master(), tensors[1].second));
    for (int64_t e = 0; e < 2; ++e) {
      CHECK(at::equal(maps.adapters[1]->a().master()[e], tensors[2 + 2 * (first + e)].second));
      CHECK(at::equal(maps.adapters[1]->b().master()[e], tensors[3 + 2 * (first + e)].second));
    }
    CHECK(at::equal(maps.adapters[1]->a().working, maps.adapters[1]->a().master().to(at::kBFloat16)));
  }
}

TEST_CASE("a rank that shares experts reads its part of each", "[peft_files]") {
  Files files;
  ParameterInfo info;
  info.name = "model.layers.1.mlp.experts.*.up_proj";
  info.first_expert = 2;
  info.num_experts = 4;
  const auto tensors = tensors_of_maps();
  files.write({tensors.begin() + 2, tensors.end()});
  for (const auto dim : {MatrixCut::Dim::kOutputs, MatrixCut::Dim::kInputs}) {
    ParameterSet parameters(at::kCPU, at::kFloat);
    const Adapter adapter(AdapterSpec{4, kScale, 0.0}, info, 2, 6, 8, 1, parameters, {dim, 1, 2});
    load_peft_adapter(files.folder.path(), parameters, kAlpha, /*rslora=*/false);
    for (int64_t e = 0; e < 2; ++e) {
      const at::Tensor a = tensors[2 + 2 * (2 + e)].second, b = tensors[3 + 2 * (2 + e)].second;
      CHECK(at::equal(adapter.a().master()[e], dim == MatrixCut::Dim::kInputs ? a.narrow(1, 4, 4) : a));
      CHECK(at::equal(adapter.b().master()[e], dim == MatrixCut::Dim::kOutputs ? b.narrow(0, 3, 3) : b));
    }
  }
}

TEST_CASE("the configuration comes back, whole numbers as such", "[peft_files]") {
  Files files;
  const PeftConfig config = read_peft_config(files.folder.path());
  CHECK(config.rank == 4);
  CHECK(config.alpha == 8.0);
  CHECK(!config.rslora);
  CHECK(config.target_modules == std::vector<std::string>{"o_proj", "up_proj"});
  CHECK(config.base_model == "deepseek-ai/DeepSeek-V3");
  const ordered_json json = ordered_json::parse(read_text_file(files.folder / "adapter_config.json"));
  CHECK(json.at("lora_alpha").is_number_integer());
  CHECK(json.at("peft_type") == "LORA");
  CHECK(json.at("task_type") == "CAUSAL_LM");
  // rsLoRA: 4 / sqrt(4) is the same scale.
  files.set("use_rslora", true);
  files.set("lora_alpha", 4);
  CHECK(files.refusal() == "(nothing was thrown)");
  // The default rank is of no map here: rank_pattern gives theirs.
  files.set("use_rslora", false);
  files.set("lora_alpha", 8);
  files.set("r", 16);
  files.set("rank_pattern", {{"o_proj", 4}, {"up_proj", 4}});
  CHECK(files.refusal() == "(nothing was thrown)");
}

TEST_CASE("an adapter that is not the recipe's is refused", "[peft_files]") {
  Files files;
  auto tensors = tensors_of_maps();
  SECTION("a missing tensor") {
    tensors.pop_back();
    tensors.erase(tensors.begin());
    files.write(tensors);
    CHECK(contains(files.refusal(), "base_model.model.model.layers.0.self_attn.o_proj.lora_A.weight"));
  }
  SECTION("a tensor too many") {
    tensors.emplace_back("base_model.model.model.layers.0.self_attn.q_a_proj.lora_A.weight", at::zeros({4, 8}));
    files.write(tensors);
    CHECK(contains(files.refusal(), "q_a_proj.lora_A.weight, which the recipe's adapter.targets leave out"));
  }
  SECTION("another rank") {
    tensors[0].second = at::zeros({2, 8});
    files.write(tensors);
    CHECK(contains(files.refusal(), "has shape [2, 8], the recipe asks for [4, 8]"));
  }
  SECTION("another scale") {
    CHECK(contains(
        files.refusal(4.0),
        "scales model.layers.0.self_attn.o_proj.lora_A.weight (rank 4) by 2, the recipe by 1; set adapter.alpha to 8"));
  }
  SECTION("a scale that agrees at the file's default rank alone") {
    files.set("r", 1);
    files.set("rank_pattern", {{"o_proj", 4}, {"up_proj", 4}});
    files.set("use_rslora", true);
    CHECK(
        contains(files.refusal(), "(rank 4) by 4, the recipe by 2; set adapter.alpha to 8 and adapter.rslora to true"));
  }
  SECTION("no files") {
    CHECK(contains(message_of<UserError>([&] { read_peft_config(files.folder / "nowhere"); }), "adapter_config.json"));
  }
}

TEST_CASE("what is no plain LoRA is refused", "[peft_files]") {
  Files files;
  SECTION("type") {
    files.set("peft_type", "IA3");
    CHECK(contains(files.refusal(), "peft_type is \"IA3\"; want LORA"));
  }
  SECTION("type of no text") {
    files.set("peft_type", 3);
    CHECK(contains(files.refusal(), "adapter_config.json"));
  }
  SECTION("DoRA") {
    files.set("use_dora", true);
    CHECK(contains(files.refusal(), "\"use_dora\" is true, which stands for the magnitudes of DoRA"));
  }
  SECTION("bias") {
    files.set("bias", "all");
    CHECK(contains(files.refusal(), "bias is \"all\""));
  }
  SECTION("whole modules") {
    files.set("modules_to_save", {"lm_head"});
    CHECK(contains(files.refusal(), "modules_to_save"));
  }
  SECTION("fused parameters") {
    files.set("target_parameters", {"mlp.experts.down_proj"});
    CHECK(contains(files.refusal(), "target_parameters"));
  }
  SECTION("transposed") {
    files.set("fan_in_fan_out", true);
    CHECK(contains(files.refusal(), "fan_in_fan_out"));
  }
  SECTION("alphas of single maps") {
    files.set("alpha_pattern", {{"o_proj", 32}});
    CHECK(contains(files.refusal(), "alpha_pattern"));
  }
  SECTION("a rank of no number") {
    files.set("r", "four");
    CHECK(contains(files.refusal(), "adapter_config.json"));
  }
  SECTION("no JSON") {
    write_text_atomically(files.folder / "adapter_config.json", "{");
    CHECK(contains(files.refusal(), "adapter_config.json: not valid JSON"));
  }
}

TEST_CASE("what PEFT 0.21 writes of plain LoRA is read, every field at its default", "[peft_files]") {
  // LoraConfig(r=4, lora_alpha=8, target_modules=[...], task_type="CAUSAL_LM").save_pretrained(), PEFT 0.21.0.
  Files files;
  write_text_atomically(files.folder / "adapter_config.json", R"({
    "alora_invocation_tokens": null, "alpha_pattern": {}, "arrow_config": null, "auto_mapping": null,
    "base_model_name_or_path": "deepseek-ai/DeepSeek-V3", "bias": "none", "corda_config": null,
    "ensure_weight_tying": false, "eva_config": null, "exclude_modules": null, "fan_in_fan_out": false,
    "inference_mode": true, "init_lora_weights": true, "kasa_config": null, "layer_replication": null,
    "layers_pattern": null, "layers_to_transform": null, "loftq_config": {}, "lora_alpha": 8, "lora_bias": false,
    "lora_dropout": 0.0, "lora_ga_config": null, "megatron_config": null, "megatron_core": "megatron.core",
    "modules_to_save": null, "monteclora_config": null, "peft_type": "LORA", "peft_version": "0.21.0",
    "qalora_group_size": 16, "r": 4, "rank_pattern": {}, "revision": null, "target_modules": ["up_proj", "o_proj"],
    "target_parameters": null, "task_type": "CAUSAL_LM", "trainable_token_indices": null, "use_bdlora": null,
    "use_dora": false, "use_qalora": false, "use_rslora": false, "velora_config": null})");
  CHECK(files.refusal() == "(nothing was thrown)");
  for (const auto& [key, harmless] :
       std::vector<std::pair<const char*, ordered_json>>{{"init_lora_weights", false},
                                                         {"init_lora_weights", "gaussian"},
                                                         {"modules_to_save", ordered_json::array()},
                                                         {"target_modules", "all-linear"},
                                                         {"runtime_config", {{"ephemeral_gpu_offload", false}}},
                                                         {"of_a_later_peft", nullptr},
                                                         {"of_a_later_peft", false}}) {
    INFO(key << " " << harmless.dump());
    files.set(key, harmless);
    CHECK(files.refusal() == "(nothing was thrown)");
  }
}

TEST_CASE("what changes the meaning of A and B is refused by name", "[peft_files]") {
  const std::pair<const char*, ordered_json> cases[] = {
      {"init_lora_weights", "pissa"},
      {"init_lora_weights", "pissa_niter_16"},
      {"init_lora_weights", "olora"},
      {"init_lora_weights", "OLoRA"},
      {"init_lora_weights", "corda"},
      {"init_lora_weights", "eva"},
      {"init_lora_weights", "loftq"},
      {"init_lora_weights", "lora_ga"},
      {"init_lora_weights", "mica"},
      {"init_lora_weights", "of a later PEFT"},
      {"init_lora_weights", 1},
      {"layer_replication", {{0, 4}, {2, 5}}},
      {"use_dora", true},
      {"use_qalora", true},
      {"alora_invocation_tokens", {1, 2}},
      {"lora_bias", true},
      {"bias", "lora_only"},
      {"bias", false},
      {"modules_to_save", {"lm_head"}},
      {"trainable_token_indices", {1}},
      {"trainable_token_indices", {{"embed_tokens", {1}}}},
      {"fan_in_fan_out", true},
      {"megatron_config", {{"a", 1}}},
      {"exclude_modules", {"o_proj"}},
      {"exclude_modules", "o_proj"},
      {"layers_to_transform", {0, 1}},
      {"layers_to_transform", 0},
      {"target_parameters", {"mlp.experts.down_proj"}},
      {"loftq_config", {{"loftq_bits", 4}}},
      {"eva_config", {{"rho", 2.0}}},
      {"corda_config", {{"corda_method", "ipm"}}},
      {"lora_ga_config", {{"direction", "ArB2r"}}},
      {"velora_config", {{"a", 1}}},
      {"monteclora_config", {{"a", 1}}},
      {"arrow_config", {{"top_k", 3}}},
      {"kasa_config", {{"beta", 0.1}}},
      {"use_bdlora", {{"nblocks", 2}}},
      {"alpha_pattern", {{"o_proj", 32}}},
      {"task_type", "SEQ_CLS"},
      {"of_a_later_peft", true},
      {"of_a_later_peft", 0.5},
      // Wrong types.
      {"r", "four"},
      {"r", 4.0},
      {"r", 0},
      {"r", -4},
      {"r", int64_t{1} << 40},
      {"r", nullptr},
      {"lora_alpha", "8"},
      {"lora_alpha", {8}},
      {"lora_dropout", "none"},
      {"lora_dropout", 2},
      {"use_rslora", 1},
      {"rank_pattern", {4}},
      {"rank_pattern", {{"o_proj", "4"}}},
      {"alpha_pattern", {{"o_proj", "4"}}},
      {"target_modules", 5},
      {"target_modules", {1}},
      {"base_model_name_or_path", 5},
      {"inference_mode", "yes"},
      {"peft_type", {"LORA"}},
  };
  for (const auto& [key, value] : cases) {
    Files files;
    files.set(key, value);
    INFO(key << " " << value.dump());
    const std::string said = files.refusal();
    CHECK(contains(said, "adapter_config.json"));
    CHECK(contains(said, key));
  }
}

TEST_CASE("the adapter's tensors are floats that are numbers, of the rank that its configuration gives",
          "[peft_files]") {
  Files files;
  auto tensors = tensors_of_maps();
  for (const double bad : {std::nan(""), HUGE_VAL}) {
    auto damaged = tensors;
    damaged[1].second = damaged[1].second.clone();
    damaged[1].second[5][3].fill_(bad);
    files.write(damaged);
    CHECK(contains(files.refusal(), "o_proj.lora_B.weight holds values that are NaN or infinite"));
  }
  auto other = tensors;
  other[0].second = at::ones({4, 8}, at::kInt);
  files.write(other);
  CHECK(contains(files.refusal(), "o_proj.lora_A.weight is of dtype I32; adapters are read as F32"));
  files.write(tensors);
  files.set("r", 8);
  CHECK(contains(files.refusal(), "r is 8 and no rank_pattern has another, but"));
}

TEST_CASE("a path that is no adapter folder is told what it should be", "[peft_files]") {
  Files files;
  const auto said = [&](const std::string& path) { return message_of<UserError>([&] { read_peft_config(path); }); };
  CHECK(contains(said(files.folder / "adapter_config.json"), "is a file; adapter.from is the folder"));
  CHECK(contains(said(files.folder / "nowhere"), "there is no such file; an adapter is a folder"));
  std::filesystem::rename(files.folder / "adapter_model.safetensors", files.folder / "adapter_model.bin");
  CHECK(contains(files.refusal(), "adapter_model.bin: is a pickle"));
}
