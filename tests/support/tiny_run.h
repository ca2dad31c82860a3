// A tiny model folder and a checkpoint of a run on it, written tensor by tensor, for tests of what reads them.
//
//   const TinyRun run({.adapter = "{rank: 2, alpha: 6, targets: [attention, experts]}", .targets = {"o_proj"}});
//   export_adapter(run.folder(), ...);  // runs/checkpoints/step-00000007, as two expert-parallel ranks write it
//
// Layer 0 is dense, layer 1 has four experts, two in each file of the checkpoint.
#pragma once

#include <ATen/ATen.h>

#include <map>
#include <string>
#include <vector>

#include <nlohmann/json.hpp>

#include "moe/disk_layout.h"
#include "moe/families/family.h"
#include "parallel/base/error.h"
#include "parallel/base/files.h"
#include "parallel/base/sha256.h"
#include "parallel/bytes/tensor_io.h"
#include "tests/support/temporary_folder.h"

namespace moetune {

inline nlohmann::ordered_json tiny_config() {
  return {{"model_type", "deepseek_v3"},
          {"vocab_size", 16},
          {"hidden_size", 16},
          {"intermediate_size", 24},
          {"moe_intermediate_size", 8},
          {"num_hidden_layers", 2},
          {"first_k_dense_replace", 1},
          {"num_attention_heads", 2},
          {"q_lora_rank", 8},
          {"kv_lora_rank", 8},
          {"qk_nope_head_dim", 8},
          {"qk_rope_head_dim", 4},
          {"v_head_dim", 8},
          {"n_routed_experts", 4},
          {"n_shared_experts", 1},
          {"num_experts_per_tok", 2},
          {"n_group", 1},
          {"topk_group", 1},
          {"num_nextn_predict_layers", 0},
          {"torch_dtype", "float32"},
          {"norm_topk_prob", true},
          {"routed_scaling_factor", 2.5}};
}

struct TinyRunOptions {
  /// of the recipe; "none" trains the weights
  std::string adapter = "{rank: 2, alpha: 6, targets: [attention, experts]}";
  /// Trained linear maps as paths in a layer: "0.self_attn.o_proj", "1.mlp.experts.*.up_proj", with the rank of each.
  std::vector<std::pair<std::string, int64_t>> maps = {{"0.self_attn.o_proj", 2},
                                                       {"1.self_attn.kv_b_proj", 2},
                                                       {"1.mlp.experts.*.gate_proj", 2},
                                                       {"1.mlp.experts.*.up_proj", 2}};
  std::string base = "nf4", compute = "bf16", router_bias = "frozen";
  at::ScalarType stored = at::kFloat;  ///< dtype of the model's tensors; correction biases are fp32
};

class TinyRun {
 public:
  explicit TinyRun(const TinyRunOptions& options = {})
      : options_(options), generator_(at::make_generator<at::CPUGeneratorImpl>(5)) {
    std::filesystem::create_directories(model());
    std::filesystem::create_directories(checkpoint());
    write_text_atomically((model() / "config.json").string(), tiny_config().dump());
    write_text_atomically((model() / "tokenizer.json").string(), "{}");
    for (const DiskTensor& tensor : disk_tensors(parse_blueprint(tiny_config(), "tiny"), false)) {
      weights[tensor.name] = tensor.held == Held::kBias ? draw(tensor.shape) : draw(tensor.shape).to(options.stored);
    }
    write_tensors((model() / "model.safetensors").string(), {weights.begin(), weights.end()}, {});
    write_checkpoint();
  }

  std::filesystem::path folder() const { return root_.path() + "/run"; }
  std::filesystem::path checkpoint() const { return folder() / "checkpoints" / "step-00000007"; }
  std::filesystem::path model() const { return root_.path() + "/model"; }
  std::string to(const std::string& name) const { return root_ / name; }

  std::map<std::string, at::Tensor> weights;  ///< of the model, by Hugging Face name
  std::map<std::string, at::Tensor> trained;  ///< masters, one a expert
  at::Tensor router_bias;                     ///< of layer 1, as saved

 private:
  at::Tensor draw(at::IntArrayRef shape) { return at::randn(shape, generator_, at::TensorOptions(at::kFloat)); }

  void write_checkpoint() {
    std::vector<std::pair<std::string, at::Tensor>> files[2];
    StringMap metadata[2];
    // Numbers first, first + 1, ... of a box of the tensor.
    auto save = [&](int file, const std::string& name, const nlohmann::ordered_json& box, int64_t first,
                    const at::Tensor& numbers) {
      metadata[file][name] = nlohmann::ordered_json{
          {"whole", box.at(0)},
          {"at", box.at(1)},
          {"shape", box.at(2)},
          {"first", first}}.dump();
      files[file].emplace_back("master/" + name, numbers);
      files[file].emplace_back("first_moment/" + name, at::full_like(numbers, 100.0));
      files[file].emplace_back("second_moment/" + name, at::full_like(numbers, 200.0));
    };
    // What all ranks hold is cut between the two of them, unevenly.
    auto save_cut = [&](const std::string& name, const at::Tensor& master) {
      const int64_t cut = master.numel() / 3;
      const nlohmann::ordered_json box = {master.sizes().vec(), std::vector<int64_t>(master.dim(), 0),
                                          master.sizes().vec()};
      save(0, name, box, 0, master.flatten().slice(0, 0, cut).contiguous());
      save(1, name, box, cut, master.flatten().slice(0, cut).contiguous());
    };
    auto save_map = [&](const std::string& path, const char* part, at::IntArrayRef shape) {
      const size_t star = path.find('*');
      if (star == std::string::npos) {
        save_cut(path + part, trained[path + part] = draw(shape));
        return;
      }
      for (int file = 0; file < 2; ++file) {
        std::vector<at::Tensor> experts;
        for (int e = 2 * file; e < 2 * file + 2; ++e) {
          experts.push_back(trained[path.substr(0, star) + std::to_string(e) + path.substr(star + 1) + part] =
                                draw(shape));
        }
        save(file, path + part, {{4, shape[0], shape[1]}, {2 * file, 0, 0}, {2, shape[0], shape[1]}}, 0,
             at::stack(experts).flatten());
      }
    };
    if (options_.adapter == "none") {
      for (const auto& [name, weight] : weights) {
        if (name.find("e_score") != std::string::npos || name.find(".experts.") != std::string::npos) continue;
        save_cut(name, trained[name] = draw(weight.sizes()));
      }
      for (const char* leaf : {"gate_proj", "up_proj", "down_proj"}) {
        const std::string path = str("model.layers.1.mlp.experts.*.", leaf);
        save_map(path, ".weight", weights.at(str("model.layers.1.mlp.experts.0.", leaf, ".weight")).sizes());
      }
    } else {
      for (const auto& [map, rank] : options_.maps) {
        const std::string path = "model.layers." + map;
        const size_t star = path.find('*');
        const at::Tensor& weight = weights.at(
            (star == std::string::npos ? path : path.substr(0, star) + "0" + path.substr(star + 1)) + ".weight");
        save_map(path, ".lora_A.weight", {rank, weight.size(1)});
        save_map(path, ".lora_B.weight", {weight.size(0), rank});
      }
    }
    router_bias = draw({4});
    files[0].emplace_back("router_bias/1", router_bias);
    nlohmann::ordered_json manifest = {{"format", "moetune-checkpoint-2"},
                                       {"step", 7},
                                       {"optimizer_steps", 7},
                                       {"seed", 17},
                                       {"batch", 2},
                                       {"mesh", "pp 1 dp 1 ep 2 tp 1"},
                                       {"frozen_digest", "f0"},
                                       {"data_digest", "d0"}};
    for (int file = 0; file < 2; ++file) {
      write_tensors((checkpoint() / str("state-0000", file, "-of-00002.safetensors")).string(), files[file],
                    metadata[file]);
    }
    write_text_atomically(
        (checkpoint() / "recipe.yaml").string(),
        str("run: {dir: ", folder().string(), "}\nmodel: {path: ", model().string(), ", base: ", options_.base,
            ", compute: ", options_.compute, "}\nadapter: ", options_.adapter,
            "\ndata: {train: train.jsonl}\ntrain: {steps: 7}\nmesh: {ep: 2}\nrouter: {bias: ", options_.router_bias,
            "}\n"));
    for (const char* name : {"recipe.yaml", "state-00000-of-00002.safetensors", "state-00001-of-00002.safetensors"}) {
      const std::string path = (checkpoint() / name).string();
      manifest["files"][name] = {{"sha256", sha256_of_file(path)}, {"bytes", std::filesystem::file_size(path)}};
    }
    write_text_atomically((checkpoint() / "manifest.json").string(), manifest.dump());
  }

  TinyRunOptions options_;
  at::Generator generator_;
  TemporaryFolder root_;
};

}  // namespace moetune
