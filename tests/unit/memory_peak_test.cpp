// The memory plan of a step against what the allocator hands out in it.
#include <c10/core/Allocator.h>
#include <c10/util/ThreadLocalDebugInfo.h>

#include "moe/families/family.h"
#include "parallel/comm/launch.h"
#include "tests/support/catch.h"
#include "tests/support/memory_count.h"
#include "tests/support/planned_model.h"
#include "trainer/data/batch_groups.h"
#include "trainer/data/step_batch.h"
#include "trainer/plan/memory_plan.h"
#include "trainer/recipe/recipe_dump.h"
#include "trainer/sweep/sweep.h"
#include "trainer/update/gradients.h"
#include "trainer/update/optimizer.h"

using namespace moetune;
using nlohmann::json;

TEST_CASE("memory plan: the peak of a step is what the allocator sees") {
  json object = kTinyV3;
  object.update({{"hidden_size", 256},
                 {"num_hidden_layers", 4},
                 {"intermediate_size", 512},
                 {"moe_intermediate_size", 128},
                 {"q_lora_rank", 96},
                 {"kv_lora_rank", 64},
                 {"qk_nope_head_dim", 32},
                 {"qk_rope_head_dim", 16},
                 {"v_head_dim", 32},
                 {"num_attention_heads", 8},
                 {"vocab_size", 1000}});
  const Blueprint config = parse_blueprint(object, "config.json");
  const std::vector<std::vector<std::string>> cases = {
      {"model.compute=fp32"},
      {"model.compute=bf16", "adapter.targets=[all_linear]"},
      {"model.compute=fp32", "adapter.targets=[experts]", "train.slice_tokens=200"},
      {"model.compute=fp32", "adapter.targets=[all_linear]", "train.keep=all"},
      {"model.compute=fp32", "adapter.targets=[all_linear]", "train.keep=attention"},
      {"model.compute=fp32", "adapter.targets=[experts]", "train.keep=experts", "train.slice_tokens=200"},
      {"model.compute=bf16", "adapter.targets=[attention]", "train.keep=experts"},
      {"model.compute=fp32", "adapter=none", "model.base=fp32", "train.keep=experts", "mesh.pp_groups=2"},
      {"model.compute=fp32", "adapter.targets=[all_linear]", "mtp.loss_weight=0.3"},
      {"model.compute=fp32", "adapter.targets=[experts]", "adapter.experts=[1, 4-5]", "router.train=lora"},
      {"model.compute=bf16", "adapter.targets=[experts]", "adapter.layers=[3]", "router.train=full"},
      {"model.compute=fp32", "adapter=none", "model.base=fp32", "train.slice_tokens=200"},
      {"model.compute=fp32", "adapter=none", "train.parts=[experts, norms]"},
      {"model.compute=fp32", "adapter=none", "train.parts=[experts]", "train.experts=[1, 4-5]"},
      {"model.compute=bf16", "adapter=none", "train.parts=[experts]", "train.experts=[0-6]", "model.base=bf16"},
      {"model.compute=fp32", "adapter.targets=[experts]", "train.parts=[attention, router, norms]"},
      {"model.compute=fp32", "adapter.targets=[all_linear]", "mesh.tp=2", "mesh.expert_tp=2", "train.slice_tokens=200"},
      {"model.compute=fp32", "adapter.targets=[attention]", "mesh.tp=2", "mesh.expert_tp=2", "train.keep=all"},
      // A sequence at a time, three together, and fewer documents than groups.
      {"model.compute=fp32", "adapter.targets=[all_linear]", "mesh.pp_groups=4"},
      {"model.compute=fp32", "adapter=none", "model.base=fp32", "mesh.pp_groups=2", "train.keep=all"},
      {"model.compute=fp32", "adapter.targets=[experts]", "mesh.pp_groups=11"},
  };
  for (std::vector<std::string> overrides : cases) {
    overrides.insert(overrides.end(), {"train.batch=4", "data.max_tokens=400"});
    const Recipe recipe = tiny_recipe(overrides);
    INFO(dump_resolved(recipe));
    // Four sequences of documents of unequal length that fill the bound.
    std::vector<int32_t> tokens;
    std::vector<int64_t> offsets{0};
    for (int64_t i = 0; i < 4; ++i) {
      for (const int64_t length : {171, 229}) {
        for (int64_t t = 0; t < length; ++t) {
          tokens.push_back(static_cast<int32_t>((t * 37 + i * 11 + length) % config.vocab));
        }
        offsets.push_back(static_cast<int64_t>(tokens.size()));
      }
    }
    Documents documents("t", config.vocab, tokens, tokens, offsets, {});
    Batches batches(documents, {.seed = 1, .batch = 4, .max_tokens = 400, .shuffle = false});

    auto count = std::make_shared<MemoryCount>();
    c10::DebugInfoGuard guard(c10::DebugInfoKind::PROFILER_STATE, count);
    const MeshShape shape{1, 1, 1, recipe.mesh.tp, recipe.mesh.expert_tp};
    Built built(config, recipe, 1, shape.tp, shape.expert_tp);
    const int64_t slice_tokens = recipe.train.slice_tokens.value_or(automatic_slice_tokens(at::kCPU));
    const int64_t num_groups = recipe.mesh.pp_groups.value_or(1);
    std::vector<StepBatch> groups;
    for (const RankBatch& group : batch_groups(batches.local(0, 0, 1), num_groups)) {
      groups.push_back(make_step_batch(group, *built.model, slice_tokens, at::kCPU, scalar_type(recipe.model.compute)));
    }
    Launch launch;
    Mesh mesh(launch, {1, 1, 1, 1});
    Partition partition(built.model->parameters, mesh);
    GradientReducer reducer(partition, mesh, SlabTier::kHost);
    Optimizer optimizer(partition, {});
    SweepOptions options;
    options.kept = kept_blocks(recipe.train.keep, static_cast<int64_t>(built.model->blocks.size()));
    options.mtp_weight = recipe.mtp.loss_weight;
    Sweep sweep(*built.model, options, {.done = [&](LayerId layer) { reducer.reduce(layer); }});
    const int64_t resting = count->peak = count->now;
    sweep.train(groups, {17, 1, true});

    // What the recipe bounds, and what the data has.
    const Batches::Peak fullest = batches.fullest_step(1, 1, num_groups);
    const MemoryPlan bound = plan_memory(config, recipe, shape, {at::kCPU}),
                     plan = plan_memory(config, recipe, shape, {at::kCPU}, {fullest.tokens, fullest.group_tokens});
    int64_t rows = 0, longest = 0;
    for (const StepBatch& group : groups) {
      rows += group.main.num_rows;
      longest = std::max(longest, group.main.num_rows);
    }
    REQUIRE(bound.step_rows == rows);
    REQUIRE(plan.rows == longest);
    if (num_groups <= 4) CHECK(bound.host_bytes() == plan.host_bytes());
    // The other ranks of the tensor axis, which only sizes stand for, take no part of the optimizer's work.
    const int64_t held = held_bytes(optimizer, reducer),
                  peak = count->peak + (shape.tp > 1 ? planned_shards(plan) : held);
    const double ratio = static_cast<double>(plan.host_bytes()) / static_cast<double>(peak);
    INFO("peak " << peak << ", of it at rest " << resting << "\n" << memory_table(plan, true));
    CHECK(ratio >= 1.0);
    CHECK(ratio < 1.15);
  }
}
