// What a step computes, against counts of the published model: 2 FLOPs a parameter that a token meets, forward.
#include "trainer/plan/step_work.h"

#include <nlohmann/json.hpp>

#include "moe/block.h"
#include "moe/families/family.h"
#include "moe/inventory.h"
#include "tests/support/catch.h"
#include "tests/support/deepseek_v3_config.h"
#include "trainer/plan/model_shelf.h"
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
// heads meet keys of 192 features and probabilities values of 128, over 2,048 keys, in 61 layers.
TEST_CASE("a token's work in DeepSeek-V3 is that of the parameters that it meets", "[step_work]") {
  const Blueprint blueprint = parse_blueprint(nlohmann::json::parse(kDeepseekV3Config), "config.json");
  const auto active = static_cast<double>(count_active_parameters(blueprint)),
             embedding = static_cast<double>(blueprint.vocab * blueprint.width);
  CHECK(active > 37.5e9);
  CHECK(active < 37.6e9);
  const double norms_and_biases = 61 * (2 * 7168 + 1536 + 512) + 7168 + 58 * 256;
  const double products = 2.0 * (active - embedding - norms_and_biases), head = 2.0 * embedding;
  const double attention = 2.0 * 2048 * 128 * (192 + 128) * 61;
  const StepTokens one{1, SeenKeys({{4095, 1}})};  // 2,048 keys on average
  const auto all_of = [&](std::vector<std::string> overrides, const KeptBlocks& kept) {
    overrides.insert(overrides.end(), {"run.device=cuda", "model.compute=bf16"});
    return step_work(blueprint, recipe_of(overrides), kept, one);
  };
  // One adapter of rank 1, in layer 0: up reaches all blocks, and what it adds is its own few products.
  const std::vector<std::string> narrow{"adapter.targets=[kv_a_proj_with_mqa]", "adapter.layers=[0]", "adapter.rank=1"};
  const double adapter = 2.0 * (7168 + 576);
  const Work kept = all_of(narrow, KeptBlocks::whole(61)), recomputed = all_of(narrow, {}),
             attention_kept = all_of(narrow, {.attention = 61}),
             experts_kept = all_of(narrow, {.attention = 61, .experts = 61});
  CHECK(near(kept.dense + kept.grouped + kept.scores, 2.0 * products + 3.0 * adapter));
  // The way up needs no output of a down map a second time: of eight routed experts and a shared one, or a dense MLP.
  const double down = 2.0 * 7168 * (58 * 9 * 2048 + 3 * 18432);
  const double again = 3.0 * products - head - down + 4.0 * adapter;
  CHECK(near(recomputed.products() - recomputed.attention, again));
  // Nor that of o_proj where attention is kept, nor those of gate and up where experts are.
  const double o = 2.0 * 61 * 128 * 128 * 7168, gate_up = 2.0 * 58 * 8 * 2 * 7168 * 2048;
  CHECK(near(attention_kept.products() - attention_kept.attention, again - o));
  CHECK(near(attention_kept.attention, 3.5 * attention));
  CHECK(near(experts_kept.products() - experts_kept.attention, again - o - gate_up));
  CHECK(near(experts_kept.grouped, kept.grouped));
  CHECK(near(kept.attention, 3.5 * attention));
  CHECK(near(recomputed.attention, 4.5 * attention));
  CHECK(near(kept.grouped, 2.0 * 2.0 * 58 * 8 * 3 * 7168 * 2048));
}

TEST_CASE("a part that trains itself adds its own gradient's products, and no other part's", "[step_work]") {
  const Blueprint blueprint = parse_blueprint(nlohmann::json::parse(kDeepseekV3Config), "config.json");
  const auto of = [&](const std::string& parts) {
    return step_work(blueprint, recipe_of({"adapter=none", "train.parts=[embedding" + parts + "]"}),
                     KeptBlocks::whole(61), {1, SeenKeys({{4095, 1}})});
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

// Of 4,096 tokens the first 127 see fewer than 128 keys: (128 x 129 / 2 + 3,968 x 128) / 4,096. In chunks of 1,000 four
// times the pairs of 1,000 tokens and those of 96.
TEST_CASE("a token sees the keys that its mask shows", "[step_work]") {
  const SeenKeys keys({{4096, 3}});
  CHECK(near(keys.of({}), 4097.0 / 2));
  CHECK(near(keys.of({MaskSpec::Kind::kWindow, 128}), (8256.0 + 507904.0) / 4096));
  CHECK(near(keys.of({MaskSpec::Kind::kChunk, 1000}), (4 * 500500.0 + 96 * 97 / 2) / 4096));
  CHECK(near(keys.of({MaskSpec::Kind::kWindow, 4096}), 4097.0 / 2));
  CHECK(near(SeenKeys({{100, 1}, {4096, 1}}).of({MaskSpec::Kind::kWindow, 128}), (5050.0 + 8256 + 507904) / 4196));
  CHECK(SeenKeys().of({}) == 0.0);
}

// gpt-oss-20b: 24 layers, each second one of the last 128 tokens; 64 heads, keys and values of 64 features.
TEST_CASE("attention of gpt-oss costs what its windows and its whole layers show", "[step_work]") {
  const Blueprint blueprint = load_planned_model("gpt-oss-20b");
  const Work work = step_work(blueprint, recipe_of({"adapter.targets=[attention]"}), KeptBlocks::whole(24),
                              {1, SeenKeys({{4096, 1}})});
  const double windows = 516160.0 / 4096, whole = 4097.0 / 2;
  CHECK(near(work.attention, 3.5 * 2 * 64 * (64 + 64) * 12 * (windows + whole)));
}

// gpt-oss-20b in bf16: 4 of its experts a token, 2,880 wide as the model. The rows of biases of gate and up are
// written, and added to products that are read and written; those of down are weighted in between; behind them the
// gradient of the weight writes its rows, multiplies them and sums them up. Sinks scale what 64 heads of 64 features
// give.
TEST_CASE("biases of experts and sinks are read and written", "[step_work]") {
  Blueprint with = load_planned_model("gpt-oss-20b"), without = with;
  without.experts.biases = false;
  for (LayerSpec& layer : without.layers) layer.attention.sinks = false;
  const PassTraits traits{.compute = at::kBFloat16, .device = at::kCUDA};
  const auto cost = [&](const Blueprint& blueprint) {
    return block_cost(blueprint, block_maps(blueprint, LayerId::block(0)), traits);
  };
  const BlockCost a = cost(with), b = cost(without);
  const double gate_up = 4 * 2880 * 2 * (1 + 3), down = 4 * 2880 * (1 + 2 + 3), weight = 4 * 2880 * (1 + 3 + 1);
  const double sinks = 64 * 64 * 2;
  CHECK(near(a.forward.touched_bytes - b.forward.touched_bytes, 2 * (gate_up + down + sinks)));
  CHECK(near(a.again.touched_bytes - b.again.touched_bytes, 2 * (gate_up + sinks)));
  CHECK(near(a.backward.touched_bytes - b.backward.touched_bytes, 2 * weight));
}

TEST_CASE("work is said in words", "[step_work]") {
  Work work;
  work.dense = 6e14;
  work.grouped = 3e14;
  work.attention = 1e14;
  CHECK(work_text(work) == "1 PFLOP a step: dense 60 %, experts 30 %, attention 10 %");
}
