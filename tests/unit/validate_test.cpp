// `moetune validate`: what it finds, and what it tells of DeepSeek-V3.
#include "trainer/plan/validate.h"

#include <filesystem>
#include <iostream>
#include <regex>
#include <sstream>

#include "parallel/base/error.h"
#include "parallel/base/files.h"
#include "tests/support/catch.h"
#include "tests/support/deepseek_v3_config.h"
#include "tests/support/message_of.h"
#include "tests/support/temporary_folder.h"
#include "trainer/recipe/recipe_load.h"
#include "trainer/run/banner.h"

using namespace moetune;

namespace {

/// A model folder with DeepSeek-V3's config.json and a tokenised data file.
struct Place {
  Place() {
    write_text_atomically(folder / "config.json", kDeepseekV3Config);
    write_text_atomically(folder / "train.jsonl", R"({"input_ids": [1, 2], "labels": [1, 2]})"
                                                  "\n");
  }
  /// `more` stands from line 5 on.
  Recipe recipe(const std::vector<std::string>& overrides, const std::string& more = "") const {
    return parse_recipe(str("run: {dir: r}\nmodel: {path: ", folder.path(), ", weights: random}\ndata: {train: ",
                            folder / "train.jsonl", "}\ntrain: {steps: 5}\n", more),
                        "r.yaml", overrides);
  }
  std::string mistakes(const std::vector<std::string>& overrides, int64_t world_size = 0) const {
    return message_of<UserError>([&] { validate(recipe(overrides), "r.yaml", world_size); });
  }
  TemporaryFolder folder;
};

}  // namespace

TEST_CASE("validate: DeepSeek-V3 on 16 GPUs") {
  const Place place;
  const std::string text = validate(place.recipe({"adapter.rank=32", "mesh.ep=8", "run.device=cuda"}), "r.yaml", 16);
  CHECK(contains(validate(place.recipe({"mesh.ep=8", "mesh.tp=2", "mesh.expert_tp=2"}), "r.yaml", 16),
                 "tp 2 (expert tp 2): 16 ranks, 32 experts of each layer a rank, 1/2 of each"));
  CHECK(contains(validate(place.recipe({"mesh.ep=8", "train.keep=experts"}), "r.yaml", 16),
                 "keeps    experts of the last 61 blocks, of their way down\n"));
  CHECK(!contains(text, "keeps "));
  INFO(text);
  for (const char* part :
       {"671B parameters (37.6B active a token), 61 layers (58 with experts)",
        "256 routed, the top 8 from the best 4 of 8 groups; 1 shared", "LoRA of rank 32, alpha 32 on attention",
        "194M parameters, 0.0289 % of the model: attention 194M", "pp 1 x dp 2 x ep 8 x tp 1: 16 ranks, 32 experts",
        "frozen experts   ", "kept block inputs           13.4 GiB"}) {
    CHECK(contains(text, part));
  }
  std::istringstream lines(text);
  for (std::string line; std::getline(lines, line);) {
    if (line.rfind("model", 0) != 0) CHECK(line.size() <= 100);
  }
}

TEST_CASE("validate: every mistake at once, with its place") {
  const Place place;
  const std::string all =
      place.mistakes({"mesh.ep=3", "adapter.targets=[q_proj]", "data.eval=" + (place.folder / "none.jsonl")});
  CHECK(contains(all, "command line: data.eval: "));
  CHECK(contains(all, "none.jsonl: no such file"));
  CHECK(contains(all, "no linear map of this model matches q_proj"));
  CHECK(contains(all, "3 ranks do not divide the model's 256 routed experts"));
  CHECK(contains(place.mistakes({"mesh.ep=8"}, 12), "12 ranks cannot be divided"));
  const std::string mesh = place.mistakes({"mesh.tp=3", "mesh.ep=5"}, 16);
  CHECK(contains(mesh, "mesh.ep: 5 ranks do not divide the model's 256 routed experts"));
  CHECK(contains(mesh, "mesh.tp: 3 ranks do not divide the model's 128 attention heads"));
  CHECK(contains(mesh, "16 ranks cannot be divided"));
  CHECK(!contains(mesh, "features"));
  // 2048 and 18432 features in 64 parts: half a block and four and a half of NF4.
  for (const char* base : {"model.base=nf4", "model.base=bf16"}) {
    for (const char* experts : {"mesh.expert_tp=1", "mesh.expert_tp=64"}) {
      CHECK(validate(place.recipe({"mesh.tp=64", base, experts}), "r.yaml", 64).size() > 0);
    }
  }
  const std::string experts = place.mistakes({"mesh.tp=4", "mesh.expert_tp=2", "mesh.ep=3"}, 16);
  CHECK(contains(experts, "command line: mesh.expert_tp: 2; allowed is 1, or mesh.tp, which is 4"));
  CHECK(contains(experts, "mesh.ep: 3 ranks do not divide"));
  CHECK(contains(place.mistakes({"mesh.expert_tp=2"}, 16),
                 "command line: mesh.expert_tp: 2; allowed is 1 where mesh.tp is 1"));
  CHECK(contains(place.mistakes({"adapter.from=" + (place.folder / "adapter")}), "adapter_config.json"));
  CHECK(contains(place.mistakes({"model.weights=pretrained"}), "model.safetensors"));
  CHECK(contains(place.mistakes({"model.path=/nowhere"}), "/nowhere/config.json"));
  write_text_atomically(place.folder / "train.jsonl", R"({"text": "a"})"
                                                      "\n");
  CHECK(contains(place.mistakes({}), "tokenizer.json"));
}

TEST_CASE("validate: a mistake of what an adapter reaches has the place of its own key") {
  const Place place;
  const auto mistake_of = [&](const std::string& adapter) {
    return message_of<UserError>([&] { validate(place.recipe({"run.device=cuda"}, adapter), "r.yaml", 1); });
  };
  CHECK(mistake_of("adapter:\n  targets: [attention]\n  layers: [70]\n").starts_with("r.yaml:7: adapter.layers: "));
  CHECK(mistake_of("adapter:\n  targets: [experts]\n\n  experts: [300]\n").starts_with("r.yaml:8: adapter.experts: "));
  CHECK(mistake_of("adapter:\n  rank: 4\n  targets: [q_proj]\n").starts_with("r.yaml:7: adapter.targets: "));
}

// 16 GPUs are two hosts: sharded within a node dense maps are in 8 parts, over all in 16.
TEST_CASE("validate: hosts have eight ranks") {
  const Place place;
  const auto dense_of = [&](const char* shard, int64_t ranks) {
    const Recipe recipe = place.recipe({"run.device=cuda", str("mesh.shard=", shard)});
    const std::string text = validate(recipe, "r.yaml", ranks), name = "frozen dense maps";
    const size_t begin = text.find(name);
    return text.substr(begin, text.find('\n', begin) - begin);
  };
  CHECK(contains(dense_of("node", 16), ", 1/8 of each"));
  CHECK(contains(dense_of("all", 16), ", 1/16 of each"));
  CHECK(contains(dense_of("node", 4), ", 1/4 of each"));
}
