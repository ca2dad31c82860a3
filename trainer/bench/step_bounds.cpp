#include "trainer/bench/step_bounds.h"

#include <nlohmann/json.hpp>

#include "moe/families/family.h"
#include "parallel/base/error.h"
#include "trainer/assemble.h"
#include "trainer/data/batches.h"
#include "trainer/data/dataset.h"
#include "trainer/recipe/recipe_load.h"
#include "trainer/run/stepper.h"

namespace moetune {
namespace {

constexpr const char* kModel = R"({
  "model_type": "deepseek_v3", "vocab_size": 96, "hidden_size": 64, "intermediate_size": 64,
  "moe_intermediate_size": 64, "num_hidden_layers": 8, "first_k_dense_replace": 1, "num_attention_heads": 2,
  "num_key_value_heads": 2, "q_lora_rank": 32, "kv_lora_rank": 32, "qk_nope_head_dim": 16, "qk_rope_head_dim": 16,
  "v_head_dim": 16, "n_routed_experts": 8, "n_shared_experts": 1, "num_experts_per_tok": 2, "n_group": 1,
  "topk_group": 1, "norm_topk_prob": true, "routed_scaling_factor": 1.0, "rms_norm_eps": 1e-6,
  "max_position_embeddings": 256})";
constexpr int64_t kTokens = 64;

std::string recipe_text(const Meter& meter, int64_t ranks) {
  return str("run: {dir: bench, check_replicas_every: 0}\nmodel: {path: bench, weights: random, compute: ",
             meter.device().is_cuda() ? "bf16" : "fp32",
             "}\nadapter: {rank: 8, targets: [attention, experts]}\ndata: {train: bench.jsonl, max_tokens: ", kTokens,
             "}\ntrain: {steps: 1000000, batch: ", ranks, ", keep: none}\n");
}

}  // namespace

void measure_small_blocks(Meter& meter) {
  Launch& launch = meter.launch();
  const int64_t ranks = launch.world_size();
  const Recipe recipe = parse_recipe(recipe_text(meter, ranks), "moetune bench");
  const Blueprint blueprint = parse_blueprint(nlohmann::json::parse(kModel), "the model of moetune bench");
  std::vector<int32_t> tokens;
  std::vector<int64_t> offsets{0};
  for (int64_t document = 0; document < ranks; ++document) {
    for (int64_t i = 0; i < kTokens; ++i) tokens.push_back(static_cast<int32_t>((17 * i + document) % blueprint.vocab));
    offsets.push_back(static_cast<int64_t>(tokens.size()));
  }
  const Documents documents("the data of moetune bench", blueprint.vocab, tokens, tokens, offsets, {});
  Batches batches(documents, batch_options(recipe));
  Assembly run = assemble_on(std::make_unique<Mesh>(launch, resolve_mesh({.dp = ranks}, launch.world_size())), recipe,
                             blueprint, launch);
  Stepper stepper(recipe, run, nullptr);
  int64_t step = 0;
  meter.measure({"small_blocks", "1/s", static_cast<double>(blueprint.num_layers()),
                 str(kTokens, " tokens, width ", blueprint.width, ", ", blueprint.router.experts,
                     " experts, adapters on attention and experts, recomputed")},
                Meter::Where::kHost,
                [&] { return at::tensor({stepper.train(batches, step++, *recipe.train.steps).loss}); });
  stepper.optimizer().flush();
}

}  // namespace moetune
