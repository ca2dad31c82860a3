#include "tests/fuzz/targets.h"

#include <memory>

#include "lora/adapters/peft_files.h"
#include "moe/inventory.h"
#include "parallel/base/error.h"
#include "parallel/base/files.h"
#include "parallel/bytes/tensor_io.h"
#include "tests/support/deepseek_v3_config.h"
#include "tests/support/tiny_model.h"
#include "tests/support/tiny_run.h"
#include "trainer/data/documents.h"
#include "trainer/exports/export.h"
#include "trainer/exports/inspect.h"
#include "trainer/exports/merge.h"
#include "trainer/plan/validate.h"
#include "trainer/recipe/recipe_dump.h"
#include "trainer/recipe/recipe_load.h"

namespace moetune {
namespace {

namespace fs = std::filesystem;

void write(const fs::path& path, const std::string& text) { write_text_atomically(path.string(), text); }

// --- safetensors: one file, and a model folder of several

void read_all(const SafetensorsFile& file) {
  for (const std::string& name : file.names()) {
    const TensorInfo& info = file.at(name);
    if (scalar_type_of(info.dtype)) read_tensor(file, name);
    std::vector<char> bytes(info.bytes);
    file.read(info, 0, info.bytes, bytes.data());
  }
}

FuzzTarget safetensors_file() {
  return {"safetensors",
          [](const fs::path& folder) {
            write_tensors((folder / "a.safetensors").string(),
                          {{"a", at::arange(12, at::kFloat).view({3, 4})},
                           {"b", at::arange(5, at::kLong)},
                           {"c", at::zeros({0, 7}, at::kHalf)},
                           {"d", at::ones({}, at::kByte)}},
                          {{"note", "x"}});
          },
          {"a.safetensors"},
          [](const fs::path& folder) { read_all(SafetensorsFile((folder / "a.safetensors").string())); }};
}

FuzzTarget safetensors_index() {
  return {"index",
          [](const fs::path& folder) {
            write_tensors((folder / "model-00001-of-00002.safetensors").string(), {{"a", at::ones({2, 2})}}, {});
            write_tensors((folder / "model-00002-of-00002.safetensors").string(), {{"b", at::ones({3})}}, {});
            write(folder / "model.safetensors.index.json",
                  R"({"metadata": {"total_size": 28}, "weight_map": {"a": "model-00001-of-00002.safetensors",)"
                  R"( "b": "model-00002-of-00002.safetensors"}})");
          },
          {"model.safetensors.index.json", "model-00001-of-00002.safetensors"},
          [](const fs::path& folder) {
            const SafetensorsFolder model(folder.string());
            for (const char* name : {"a", "b"}) read_tensor(model, name);
          }};
}

// --- config.json: read, counted, planned

FuzzTarget model_config(const char* name, std::string text) {
  return {name,
          [text](const fs::path& folder) {
            write(folder / "config.json", text);
            write(folder / "train.jsonl", R"({"input_ids": [1, 2, 3], "labels": [-100, 2, 3]})");
          },
          {"config.json"},
          [](const fs::path& folder) {
            const Blueprint config = load_blueprint(folder);
            count_parameters(config, /*with_mtp=*/config.num_mtp_layers > 0);
            const Recipe recipe = parse_recipe(
                str("run: {dir: ", (folder / "run").string(), "}\nmodel: {path: ", folder.string(),
                    ", weights: random}\ndata: {train: ", (folder / "train.jsonl").string(), "}\ntrain: {steps: 1}\n"),
                "fuzz.yaml");
            validate(recipe, "fuzz.yaml", 1);
          }};
}

// --- a recipe: read, written out, read again

FuzzTarget recipe() {
  return {"recipe",
          [](const fs::path& folder) {
            write(folder / "recipe.yaml", R"(run:
  dir: runs/a
  seed: 17
model:
  path: /models/DeepSeek-V3
  base: nf4
  compute: bf16
adapter:
  rank: 32
  alpha: 32
  targets: [attention, experts.gate_proj]
  ranks: {experts.gate_proj: 6}
data:
  train: data/train.jsonl
  eval: data/heldout.jsonl
  max_tokens: 4096
train:
  steps: 500
  batch: 64
  keep: auto
  optimizer: {lr: 2.0e-4, betas: [0.9, 0.999]}
  schedule: {kind: cosine, warmup_steps: 20}
mesh: {dp: auto, ep: 8, tp: 2, shard: node}
offload: {frozen: 40GiB, activations: host}
checkpoint: {every_steps: 100, keep_last: 2}
eval: {every_steps: 50}
)");
          },
          {"recipe.yaml"},
          [](const fs::path& folder) {
            const Recipe read = load_recipe((folder / "recipe.yaml").string());
            const std::string dumped = dump_resolved(read);
            if (dump_resolved(parse_recipe(dumped, "dumped")).empty()) throw InternalError("an empty recipe");
          }};
}

// --- tokenised lines

FuzzTarget jsonl() {
  return {"jsonl",
          [](const fs::path& folder) {
            write(folder / "train.jsonl",
                  "{\"input_ids\": [1, 2, 3], \"labels\": [-100, 2, 3]}\n\n"
                  "{\"input_ids\": [4, 5, 6, 7], \"labels\": [-100, -100, 6, 7]}\n");
          },
          {"train.jsonl"},
          [](const fs::path& folder) {
            const std::string path = (folder / "train.jsonl").string();
            if (!Documents::is_tokenised_jsonl(path)) throw UserError("not tokenised");
            Documents documents = Documents::from_jsonl(path, 100);
            documents.truncate(3);
          }};
}

// --- an adapter to go on from

FuzzTarget adapter() {
  const auto model = std::make_shared<TinyModel>(tiny_blueprint(2), TinyOptions{.targets = {"o_proj", "experts"}});
  return {"adapter",
          [model](const fs::path& folder) {
            PeftConfig config;
            config.rank = 2;
            config.alpha = 4.0;
            config.target_modules = {"o_proj", "gate_proj", "up_proj", "down_proj"};
            write_peft_config(folder, config);
            std::vector<std::pair<std::string, at::Tensor>> tensors;
            for (const Parameter& parameter : model->model->parameters.all()) {
              const ParameterInfo& info = parameter.info();
              for (int64_t e = 0; e < info.num_experts; ++e) {
                tensors.emplace_back(peft_key(expert_name(info.name, e)), parameter.master()[e].clone());
              }
              if (info.num_experts == 0) tensors.emplace_back(peft_key(info.name), parameter.master().clone());
            }
            write_tensors((folder / "adapter_model.safetensors").string(), tensors, {{"format", "pt"}});
          },
          {"adapter_config.json", "adapter_model.safetensors"},
          [model](const fs::path& folder) {
            load_peft_adapter(folder, model->model->parameters, 4.0, /*rslora=*/false);
            inspect(folder);
          }};
}

// --- a checkpoint: inspected, exported, merged

FuzzTarget manifest() {
  const auto run = std::make_shared<TinyRun>();
  const std::string step = "checkpoints/step-00000007/";
  return {
      "manifest",
      [run](const fs::path& folder) { fs::copy(run->folder(), folder, fs::copy_options::recursive); },
      {step + "manifest.json", step + "manifest.json", step + "state-00000-of-00002.safetensors", step + "recipe.yaml"},
      [](const fs::path& folder) {
        const fs::path to = folder.string() + "-export";
        try {
          inspect(folder);
        } catch (const UserError&) {
          // damaged, which the exports must find as well
        }
        export_adapter(folder, to, AdapterReader::kPeft);
        export_adapter(folder, to, AdapterReader::kPeft3d);
        export_adapter(folder, to, AdapterReader::kVllm);
      }};
}

// --- what any path may be

FuzzTarget model_folder() {
  const auto run = std::make_shared<TinyRun>();
  return {"model",
          [run](const fs::path& folder) { fs::copy(run->model(), folder, fs::copy_options::recursive); },
          {"config.json", "model.safetensors", "tokenizer.json"},
          [](const fs::path& folder) { inspect(folder, /*digests=*/true); }};
}

}  // namespace

std::vector<FuzzTarget> fuzz_targets() {
  return {safetensors_file(),
          safetensors_index(),
          model_config("config", kDeepseekV3Config),
          model_config("tiny_config", tiny_config().dump()),
          recipe(),
          jsonl(),
          adapter(),
          manifest(),
          model_folder()};
}

}  // namespace moetune
