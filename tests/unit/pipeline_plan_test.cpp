// The stages of models and recipes, and the number of groups against the time that its formula gives; the cut itself is
// tested in pipeline_cut_test.cpp.
#include "trainer/plan/pipeline_plan.h"

#include <algorithm>
#include <filesystem>
#include <fstream>

#include <nlohmann/json.hpp>

#include "moe/families/family.h"
#include "parallel/base/error.h"
#include "tests/support/catch.h"
#include "tests/support/deepseek_v3_config.h"
#include "tests/support/message_of.h"
#include "trainer/recipe/recipe_load.h"

using namespace moetune;

namespace {

Blueprint deepseek_v3() { return parse_blueprint(nlohmann::json::parse(kDeepseekV3Config), "config.json"); }

Recipe recipe_of(const std::vector<std::string>& overrides) {
  return parse_recipe(
      "run: {dir: r}\nmodel: {path: m}\ndata: {train: t, max_tokens: 4096}\ntrain: {steps: 1, batch: 64}\n", "r.yaml",
      overrides);
}

PipelinePlan plan(const Blueprint& blueprint, const std::vector<std::string>& overrides) {
  const Recipe recipe = recipe_of(overrides);
  return plan_pipeline(blueprint, recipe, {recipe.mesh.pp, 1, recipe.mesh.ep, 1});
}

}  // namespace

TEST_CASE("a stage with the head has fewer layers", "[pipeline]") {
  const Blueprint v3 = deepseek_v3();
  const PipelinePlan four = plan(v3, {"mesh.pp=4", "mesh.ep=8"});
  REQUIRE(four.stages.size() == 4);
  CHECK(four.stages[0].is_first());
  CHECK(four.stages[3].is_last());
  CHECK(four.stages[3].num_blocks() <= four.stages[1].num_blocks());
  int64_t all = 0;
  for (const Stage& stage : four.stages) all += stage.num_blocks();
  CHECK(all == 61);
  CHECK(four.bubble() == 3.0 / (static_cast<double>(four.groups) + 3.0));

  const PipelinePlan given = plan(v3, {"mesh.pp=3", "mesh.pp_layers=[1, 50, 10]", "mesh.pp_groups=7"});
  CHECK((given.stages == stages_of({1, 50, 10})));
  CHECK(given.groups == 7);
  CHECK(to_string(given.stages[0]) == "embedding, layer 0");
  CHECK(to_string(given.stages[1]) == "layers 1 to 50");
  CHECK(to_string(given.stages[2]) == "layers 51 to 60, head");
  CHECK((plan(v3, {}).stages == std::vector<Stage>{Stage::whole(v3)}));
  CHECK(plan(v3, {}).groups == 1);
}

TEST_CASE("where weights train on GPUs the cut weighs their updates", "[pipeline]") {
  // Qwen3-30B-A3B's dimensions in 8 layers of 32 experts, on two stages of 16 groups of a sequence of 4096 tokens.
  nlohmann::json config;
  std::ifstream(std::filesystem::path(MOETUNE_SOURCE_DIR) / "recipes" / "models" / "qwen3-30b-a3b.json") >> config;
  config["num_hidden_layers"] = 8;
  config["num_experts"] = 32;
  const Blueprint qwen = parse_blueprint(config, "config.json");
  const auto first = [&](std::vector<std::string> more) {
    more.insert(more.end(), {"mesh.pp=2", "model.base=bf16", "train.batch=16"});
    const PipelinePlan planned = plan(qwen, more);
    CHECK(planned.groups == 16);
    return planned.stages.front().num_blocks();
  };
  // By hand: of a layer the numbers of attention, of the 8 experts chosen and of all 32; of a row 2 operations a number
  // down, 2 again and 4 up, scores of 32 heads of 128 over 2048 keys besides; the head's 6 a number.
  constexpr double kAttention = 2.0 * 2048 * 4096 + 2.0 * 2048 * 512, kExpert = 3.0 * 2048 * 768, kRouter = 32 * 2048;
  constexpr double kVocabulary = 151936.0 * 2048, kScores = 4.0 * 32 * 128 * 2048;
  constexpr double kDown = 2.0 * (kAttention + 8 * kExpert + kRouter) + kScores;
  constexpr double kLayer = 8.0 * (kAttention + 8 * kExpert + kRouter) + 4.5 * kScores, kHead = 6.0 * kVocabulary;
  constexpr double kUpdate = 36.0 / 100e9 * 450e12, kNumbers = kAttention + 32 * kExpert + kRouter;
  constexpr double kRows = 16 * 4096, kGroups = 16;
  const auto least = [&](double update) {
    double best = 1e300;
    int64_t at = 0;
    for (int64_t layers = 1; layers < 8; ++layers) {
      const double below = static_cast<double>(layers), above = 8.0 - below;
      const double computing = kRows * std::max(below * kLayer, above * kLayer + kHead);
      // Each stage's updates are behind its last layer at the latest; the group is at its last layer then.
      const double of_first = update * (kVocabulary + below * kNumbers) - (below - 1) * kDown * kRows / kGroups;
      const double of_last = update * (kVocabulary + above * kNumbers) - 8.0 * kDown * kRows / kGroups;
      const double step = (1.0 + 1.0 / kGroups) * computing + std::max({0.0, of_first, of_last});
      if (step < best) {
        best = step;
        at = layers;
      }
    }
    return at;
  };
  CHECK(least(0.0) == 6);
  CHECK(least(kUpdate) == 5);
  CHECK(first({"adapter=none", "run.device=cuda"}) == 5);
  CHECK(first({"adapter=none", "run.device=cpu"}) == 6);
  CHECK(first({"run.device=cuda"}) == 6);  // adapters
}

TEST_CASE("weights that cost nothing to use again go through in a group a sequence, dear ones in fewer", "[pipeline]") {
  const Blueprint v3 = deepseek_v3();
  const std::vector<std::string> mesh = {"mesh.pp=4", "mesh.ep=8"};
  const auto with = [&](std::vector<std::string> more) {
    more.insert(more.end(), mesh.begin(), mesh.end());
    return plan(v3, more).groups;
  };
  const int64_t held = with({"model.base=bf16"}), packed = with({}), fetched = with({"mesh.shard=all"});
  CHECK(held == 8);  // 64 sequences on 8 data ranks
  CHECK(packed <= held);
  CHECK(fetched < packed);
  CHECK(fetched >= 1);
  CHECK(with({"train.batch=640", "mesh.shard=all"}) > fetched);
}

TEST_CASE("pipelines that cannot be are refused with the line and what goes", "[pipeline]") {
  const Blueprint v3 = deepseek_v3();
  const auto message = [&](const std::vector<std::string>& overrides) {
    return message_of<UserError>([&] { plan(v3, overrides); });
  };
  CHECK(message({"mesh.pp=62"}) ==
        "command line: mesh.pp: 62 stages; the model has 61 layers, and each stage holds one at the least");
  CHECK(message({"mesh.pp=2", "mesh.pp_layers=[30, 30]"}) ==
        "command line: mesh.pp_layers: the stages hold 60 layers together; the model has 61");
  CHECK(message({"mesh.pp=2", "mesh.pp_layers=[61]"}) ==
        "command line: mesh.pp_layers: 1 stage is listed; mesh.pp is 2");
}
