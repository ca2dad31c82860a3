// What a step computes, against counts of the published model: 2 FLOPs a parameter that a token meets, forward.
#include "trainer/plan/step_work.h"

#include <nlohmann/json.hpp>

#include "moe/families/family.h"
#include "moe/inventory.h"
#include "tests/support/catch.h"
#include "tests/support/deepseek_v3_config.h"
#include "trainer/recipe/recipe_load.h"

using namespace moetune;

namespace {

Recipe recipe_of(const std::vector<std::string>& overrides) {
  return parse_recipe(
      "run: {dir: runs/a}\nmodel: {path: /m, weights: random}\ndata: {train: t.jsonl, max_tokens: 64}\ntrain: {steps: "
      "1, batch: 4}\n",
      "r.yaml", overrides);
}

bool near(double value, double expected) { return std::abs(value - expected) <= 1e-9 * expected; }

}  // namespace

// DeepSeek-V3 by hand: its published 37,550 M active parameters but for the embedding are in products; queries of 128
// heads meet keys of 192 features and probabilities values of 128, over half of 4,096 tokens, in 61 layers.
TEST_CASE("a token's work in DeepSeek-V3 is that of the parameters that it meets", "[step_work]") {
  const Blueprint blueprint = parse_blueprint(nlohmann::json::parse(kDeepseekV3Config), "config.json");
  const auto active = static_cast<double>(count_active_parameters(blueprint)),
             embedding = static_cast<double>(blueprint.vocab * blueprint.width);
  CHECK(active > 37.5e9);
  CHECK(active < 37.6e9);
  const double norms_and_biases = 61 * (2 * 7168 + 1536 + 512) + 7168 + 58 * 256;
  const double products = 2.0 * (active - embedding - norms_and_biases), head = 2.0 * embedding;
  const double attention = 2.0 * 2048 * 128 * (192 + 128) * 61;
  const StepTokens one{1, 2048.0};
  const auto all_of = [&](const std::vector<std::string>& overrides, int64_t kept) {
    return step_work(blueprint, recipe_of(overrides), kept, one);
  };
  // One adapter of rank 1, in layer 0: up reaches all blocks, and what it adds is its own few products.
  const std::vector<std::string> narrow{"adapter.targets=[kv_a_proj_with_mqa]", "adapter.layers=[0]", "adapter.rank=1"};
  const double adapter = 2.0 * (7168 + 576);
  const Work kept = all_of(narrow, 61), recomputed = all_of(narrow, 0);
  CHECK(near(kept.dense + kept.grouped + kept.scores, 2.0 * products + 3.0 * adapter));
  // The way up needs no output of the experts' down map a second time.
  const double down = 2.0 * 58 * 8 * 7168 * 2048;
  CHECK(near(recomputed.dense + recomputed.grouped + recomputed.scores, 3.0 * products - head - down + 4.0 * adapter));
  CHECK(near(kept.attention, 3.5 * attention));
  CHECK(near(recomputed.attention, 4.5 * attention));
  CHECK(near(kept.grouped, 2.0 * 2.0 * 58 * 8 * 3 * 7168 * 2048));
}

TEST_CASE("a part that trains itself adds its own gradient's products, and no other part's", "[step_work]") {
  const Blueprint blueprint = parse_blueprint(nlohmann::json::parse(kDeepseekV3Config), "config.json");
  const auto of = [&](const std::string& parts) {
    return step_work(blueprint, recipe_of({"adapter=none", "train.parts=[embedding" + parts + "]"}), 61, {1, 2048.0});
  };
  const Work embedding = of("");  // the way up reaches all blocks
  const auto adds = [&](const std::string& parts, double dense, double grouped, double scores) {
    INFO(parts);
    const Work work = of(", " + parts);
    CHECK(std::abs(work.dense - embedding.dense - dense) <= 1e-9 * embedding.dense);
    CHECK(std::abs(work.grouped - embedding.grouped - grouped) <= 1e-9 * embedding.grouped);
    CHECK(std::abs(work.scores - embedding.scores - scores) <= 1e-9 * embedding.scores);
  };
  adds("norms", 0, 0, 0);
  adds("head", 2.0 * 129280 * 7168, 0, 0);
  adds("experts", 0, 2.0 * 58 * 8 * 3 * 7168 * 2048, 0);
  adds("shared_expert", 2.0 * 58 * 3 * 7168 * 2048, 0, 0);
  adds("dense_mlp", 2.0 * 3 * 3 * 7168 * 18432, 0, 0);
  adds("router", 0, 0, 2.0 * 58 * 256 * 7168);
  const double q = 7168.0 * 1536 + 1536.0 * 128 * 192, kv = 7168.0 * 576 + 512.0 * 128 * 256, o = 128.0 * 128 * 7168;
  adds("attention", 2.0 * 61 * (q + kv + o), 0, 0);
}

TEST_CASE("work is said in words", "[step_work]") {
  Work work;
  work.dense = 6e14;
  work.grouped = 3e14;
  work.attention = 1e14;
  CHECK(work_text(work) == "1 PFLOP a step: dense 60 %, experts 30 %, attention 10 %");
}
