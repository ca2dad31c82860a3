// `moetune plan`: what its words mean together, and what is refused rather than left out.
#include "trainer/plan/plan_command.h"

#include <nlohmann/json.hpp>

#include "parallel/base/error.h"
#include "parallel/base/files.h"
#include "tests/support/catch.h"
#include "tests/support/message_of.h"
#include "tests/support/temporary_folder.h"

using namespace moetune;

namespace {

struct Place {
  Place() {
    write_text_atomically(recipe,
                          "run: {dir: r, device: cuda}\nmodel: {path: /models/Qwen3-30B-A3B}\n"
                          "adapter: {rank: 16, targets: [attention]}\n"
                          "data: {train: t.jsonl, max_tokens: 1024}\ntrain: {epochs: 1, batch: 4}\n");
  }
  PlanOptions options(const std::vector<std::string>& overrides = {}) const {
    return {.recipe = recipe, .overrides = overrides, .documents = 100, .tokens_per_document = 1024, .json = true};
  }
  TemporaryFolder folder;
  std::string recipe = folder / "r.yaml";
};

nlohmann::json json_of(const PlanOptions& options) { return nlohmann::json::parse(plan(options).text); }

std::string mistake_of(const PlanOptions& options) {
  return message_of<UserError>([&] { plan(options); });
}

}  // namespace

TEST_CASE("what is held out is no part of a plan's epochs", "[plan_command]") {
  const Place place;
  PlanOptions options = place.options({"data.eval_split=0.2", "data.packing=false"});
  options.on = "1xH200";
  const nlohmann::json run = json_of(options).at("run");
  CHECK(run.at("steps") == 80 / 4);
  CHECK(run.at("tokens") == 80 * 1024);
}

TEST_CASE("a search skips sizes that no mesh goes with", "[plan_command]") {
  const Place place;
  PlanOptions options = place.options({"mesh.pp=2", "train.batch=2"});
  options.search = true;
  options.max_gpus = 8;
  // One GPU is no pipeline; eight are two stages of two ranks with a sequence each, in twos. A number is of no more.
  for (const auto& [on, sizes] : {std::pair{"h200", std::vector<int>{2, 4, 8}}, {"5xH200", std::vector<int>{2, 4}}}) {
    options.on = on;
    std::vector<int> gpus;
    const nlohmann::json answer = json_of(options);
    for (const nlohmann::json& found : answer.at("plans")) {
      const nlohmann::json& mesh = found.at("mesh");
      gpus.push_back(mesh.at("gpus").get<int>());
      CHECK(mesh.at("pp") == 2);
      CHECK(mesh.at("dp").get<int>() * mesh.at("ep").get<int>() <= 2);
    }
    CHECK(gpus == sizes);
  }
}

TEST_CASE("a plan refuses what it would leave out", "[plan_command]") {
  const Place place;
  write_text_atomically(place.folder / "m.json",
                        R"({"format": "moetune-machine-1", "figures": {},
                            "device": {"kind": "cuda", "name": "NVIDIA H200", "memory_bytes": 150000000000}})");
  PlanOptions measured = place.options();
  measured.machine = place.folder / "m.json";
  measured.on = "2xH100,1xB200";
  INFO(mistake_of(measured));
  CHECK(contains(mistake_of(measured), "was measured on NVIDIA H200, which is none of the machines"));
  CHECK(contains(mistake_of(measured), "(h100, b200)"));
}

TEST_CASE("beside --model a first word with a value is no recipe", "[plan_command]") {
  const PlanOptions options{.recipe = "data.packing=false",
                            .overrides = {"train.batch=8"},
                            .model = "qwen3-30b-a3b",
                            .documents = 100,
                            .tokens_per_document = 1024,
                            .on = "1xH200",
                            .json = true};
  CHECK(json_of(options).at("run").at("steps") == 13);  // 100 in eights
  PlanOptions with_mesh = options;
  with_mesh.recipe = "mesh.ep=4";
  CHECK(contains(mistake_of(with_mesh), "command line: mesh.ep: --model takes the fastest mesh; name a recipe"));
}

TEST_CASE("a model's folder may have any name", "[plan_command]") {
  const TemporaryFolder folder;
  const std::string model = folder / "a, b: [c";
  write_text_atomically(model, read_text_file(std::string(MOETUNE_SOURCE_DIR) + "/recipes/models/qwen3-30b-a3b.json"));
  CHECK(json_of({.model = model, .on = "1xH200", .json = true}).at("run").at("steps").get<int>() > 0);
}
