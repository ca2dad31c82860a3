// A tiny DeepSeek-V3, a recipe for it, and the model that trainer/assemble builds of both: what plans are held against.
//
//   const Blueprint config = parse_blueprint(kTinyV3, "config.json");
//   const Recipe recipe = tiny_recipe({"adapter.targets=[experts]", "mesh.tp=2"});
//   Built built(config, recipe, /*ep=*/1, /*tp=*/2);
//   CHECK(part(plan_memory(config, recipe, mesh, machine), "plain tensors") == ...);
#pragma once

#include <nlohmann/json.hpp>

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "moe/model.h"
#include "tests/support/stand_in_group.h"
#include "trainer/plan/memory_plan.h"
#include "trainer/recipe/recipe_load.h"
#include "trainer/recipe/recipe_meaning.h"
#include "trainer/update/gradients.h"
#include "trainer/update/optimizer.h"

namespace moetune {

const nlohmann::json kTinyV3 = {{"model_type", "deepseek_v3"},
                                {"vocab_size", 320},
                                {"hidden_size", 64},
                                {"num_hidden_layers", 3},
                                {"intermediate_size", 96},
                                {"moe_intermediate_size", 32},
                                {"first_k_dense_replace", 1},
                                {"num_attention_heads", 4},
                                {"q_lora_rank", 24},
                                {"kv_lora_rank", 16},
                                {"qk_nope_head_dim", 16},
                                {"qk_rope_head_dim", 8},
                                {"v_head_dim", 12},
                                {"n_routed_experts", 8},
                                {"n_shared_experts", 1},
                                {"num_experts_per_tok", 2},
                                {"n_group", 4},
                                {"topk_group", 2},
                                {"num_nextn_predict_layers", 1},
                                {"norm_topk_prob", true},
                                {"routed_scaling_factor", 2.5}};

inline Recipe tiny_recipe(const std::vector<std::string>& overrides) {
  return parse_recipe(
      "run: {dir: runs/a}\nmodel: {path: /m, weights: random}\ndata: {train: t.jsonl, max_tokens: 64}\ntrain: {steps: "
      "1, batch: 4}\n",
      "r.yaml", overrides);
}

/// Stands for a group of `ranks` while a model is built.
class NoExchange final : public TokenExchange {
 public:
  explicit NoExchange(int64_t ranks) : ranks_(ranks) {}
  int64_t num_ranks() const override { return ranks_; }
  std::vector<ExchangeRound> plan(const at::Tensor&, int64_t) override { return {}; }
  RowsUnderway send(const ExchangeRound&, std::vector<at::Tensor>) override { return {}; }
  std::vector<at::Tensor> receive(RowsUnderway) override { return {}; }
  void back(const ExchangeRound&, const at::Tensor&, at::Tensor&) override {}
  double take_s() override { return 0.0; }

 private:
  int64_t ranks_;
};

/// A model of random weights as trainer/assemble builds it.
struct Built {
  Built(const Blueprint& config, const Recipe& recipe, int64_t ep, int64_t tp = 1, int64_t expert_tp = 1,
        std::optional<Stage> stage = std::nullopt)
      : targets(adapter_targets(recipe)), group(0, static_cast<int>(tp)) {
    exchange = ep == 1 ? make_local_exchange() : std::make_unique<NoExchange>(ep);
    ModelOptions options;
    options.compute = scalar_type(recipe.model.compute);
    options.gradients = gradient_dtype(recipe);
    options.base = recipe.model.base;
    options.trained = trained_parts(recipe);
    options.targets = recipe.adapter ? &targets : nullptr;
    options.router_adapter = router_adapter(recipe);
    options.placement = {0, config.router.experts / ep, config.router.experts};
    options.exchange = exchange.get();
    options.axis = TensorAxis(group);
    if (expert_tp > 1) options.expert_axis = options.axis;
    options.with_mtp = recipe.mtp.trains();
    options.stage = stage;
    model = build_model(config, *make_random_weights(config, 3, at::kCPU), options);
  }
  AdapterTargets targets;
  StandInGroup group;  // the tensor axis
  std::unique_ptr<TokenExchange> exchange;
  std::unique_ptr<Model> model;
};

/// Of shards, which lie outside the allocator that MemoryCount sees. New working copies of weights, which have no slab
/// here, would lie in theirs.
inline int64_t held_bytes(Optimizer& optimizer, const GradientReducer& reducer) {
  int64_t bytes = 0;
  for (const at::Tensor& gradient : reducer.gradients()) bytes += static_cast<int64_t>(gradient.nbytes());
  for (size_t i = 0; i < optimizer.shards().size(); ++i) {
    const Optimizer::Shard& shard = optimizer.shards()[i];
    for (const at::Tensor& tensor : {shard.master, shard.first_moment, shard.second_moment}) {
      bytes += static_cast<int64_t>(tensor.nbytes());
    }
    const Parameter& first = *optimizer.partition().groups()[i].members().front().parameter;
    if (first.info().role != Role::kWeight && !shard.working.is_same(shard.master)) {
      bytes += static_cast<int64_t>(shard.working.nbytes());
    }
  }
  return bytes;
}

/// Bytes of the plan's part of this name.
inline int64_t part(const MemoryPlan& plan, const std::string& name) {
  for (const MemoryPart& part : plan.parts) {
    if (part.name == name) return part.bytes;
  }
  return 0;
}

/// What held_bytes counts.
inline int64_t planned_shards(const MemoryPlan& plan) {
  return part(plan, "optimizer") + part(plan, "summed gradients");
}

}  // namespace moetune
