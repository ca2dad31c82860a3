// The memory plan against what built models hold, and DeepSeek-V3's numbers.
#include "trainer/plan/memory_plan.h"

#include <nlohmann/json.hpp>

#include "moe/families/family.h"
#include "moe/inventory.h"
#include "parallel/base/error.h"
#include "parallel/comm/launch.h"
#include "tests/support/catch.h"
#include "tests/support/deepseek_v3_config.h"
#include "tests/support/message_of.h"
#include "tests/support/planned_model.h"
#include "trainer/assemble.h"
#include "trainer/recipe/recipe_dump.h"
#include "trainer/recipe/recipe_load.h"
#include "trainer/update/gradients.h"
#include "trainer/update/optimizer.h"

using namespace moetune;
using nlohmann::json;

namespace {

/// What makes another family of it.
const json kQwen2 = {{"model_type", "qwen2_moe"}, {"num_experts", 8},
                     {"num_key_value_heads", 2},  {"shared_expert_intermediate_size", 40},
                     {"decoder_sparse_step", 1},  {"mlp_only_layers", json::array()}};

}  // namespace

TEST_CASE("memory plan: what a built model holds, to the byte") {
  struct Case {
    std::vector<std::string> overrides;
    json change;
    int64_t ep;
    int64_t tp = 1, expert_tp = 1;
  };
  const std::vector<Case> cases = {
      {{}, {}, 1},
      {{"adapter.targets=[all_linear]", "model.compute=fp32", "mesh.ep=4"}, {}, 4},
      {{"adapter.targets=[experts, o_proj]", "adapter.rank=5", "adapter.ranks={o_proj: 3}", "model.base=nf4_double",
        "mesh.ep=2"},
       {{"q_lora_rank", nullptr}},
       2},
      {{"adapter.targets=[shared_expert]", "model.base=bf16", "mtp.loss_weight=0.3"}, {{"n_shared_experts", 2}}, 1},
      {{"adapter.targets=[kv_b_proj]", "model.base=fp32", "model.compute=fp64", "mtp.loss_weight=0.3"},
       {{"tie_word_embeddings", true}, {"num_hidden_layers", 2}},
       1},
      {{"adapter.targets=[experts.up_proj]", "model.base=bf16", "model.compute=bf16"},
       {{"n_shared_experts", nullptr}, {"first_k_dense_replace", 0}},
       1},
      {{"adapter=none", "model.base=fp32", "model.compute=fp32", "mesh.ep=2"}, {}, 2},
      {{"adapter=none", "model.base=bf16", "mtp.loss_weight=0.1"}, {}, 1},
      {{"adapter=none", "model.base=bf16", "model.compute=bf16", "mtp.loss_weight=0.1", "train.gradients=bf16"}, {}, 1},
      // Of 321 tokens the first of four ranks holds 81. NF4: inputs and outputs divide into parts of whole blocks.
      {{"adapter.targets=[all_linear]", "model.base=bf16", "mtp.loss_weight=0.1", "mesh.tp=4"},
       {{"vocab_size", 321}},
       1,
       4},
      {{"adapter.targets=[experts, o_proj, up_proj]", "adapter.ranks={o_proj: 3}", "model.base=nf4_double", "mesh.ep=2",
        "mesh.tp=2"},
       {{"q_lora_rank", nullptr}, {"v_head_dim", 32}, {"intermediate_size", 128}, {"n_shared_experts", 4}},
       2,
       2},
      {{"adapter=none", "model.base=bf16", "model.compute=fp32", "mesh.tp=2"}, {}, 1, 2},
      // Half of each expert.
      {{"adapter.targets=[experts, o_proj]", "model.base=nf4_double", "mesh.ep=2", "mesh.tp=2", "mesh.expert_tp=2"},
       {{"moe_intermediate_size", 128}, {"v_head_dim", 32}, {"intermediate_size", 128}},
       2,
       2,
       2},
      // Parts of unequal size, of which the first rank has the largest; where none suits the blocks, whole packed maps.
      {{"adapter.targets=[all_linear]", "model.base=nf4_double", "mesh.tp=4", "mesh.expert_tp=4"},
       {{"moe_intermediate_size", 320}, {"v_head_dim", 32}, {"intermediate_size", 384}},
       1,
       4,
       4},
      {{"adapter.targets=[all_linear]", "model.base=nf4", "mesh.tp=2", "mesh.expert_tp=2"},
       {{"moe_intermediate_size", 96}, {"intermediate_size", 160}},
       1,
       2,
       2},
      {{"adapter=none", "model.base=bf16", "model.compute=fp32", "mesh.tp=4"}, {{"intermediate_size", 102}}, 1, 4},
      // Two key heads on four ranks: one each, adapters of both.
      {{"adapter.targets=[all_linear]", "model.base=nf4", "mesh.tp=4"},
       {{"model_type", "qwen3_moe"},
        {"num_experts", 8},
        {"head_dim", 16},
        {"num_key_value_heads", 2},
        {"decoder_sparse_step", 1},
        {"mlp_only_layers", json::array()}},
       1,
       4},
      // Layer 1 of three alone; of eight experts three, of which the first of two ranks holds most; routers.
      {{"adapter.targets=[all_linear]", "adapter.layers=[1]", "adapter.experts=[0, 2, 5]", "mesh.ep=2"}, {}, 2},
      {{"adapter.targets=[all_linear]", "adapter.layers=[0, mtp]", "adapter.experts=[1-6]", "mtp.loss_weight=0.3"},
       {},
       1},
      {{"adapter.targets=[experts]", "adapter.experts=[3]", "router.train=lora", "adapter.rank=3"}, {}, 1},
      {{"adapter.targets=[attention]", "adapter.layers=2", "router.train=full", "mesh.ep=2"}, {}, 2},
      {{"adapter=none", "model.base=bf16", "model.compute=bf16", "mesh.ep=2", "mesh.tp=2", "mesh.expert_tp=2"},
       {},
       2,
       2,
       2},
      // Named parts, the rest of whose layers' slabs stays.
      {{"adapter=none", "train.parts=[experts, norms]", "model.base=nf4"}, {}, 1},
      {{"adapter=none", "train.parts=[attention, router, head]", "model.base=nf4_double", "mesh.ep=2"}, {}, 2},
      {{"adapter=none", "train.parts=[shared_expert, embedding]", "model.base=bf16", "mesh.tp=2"}, {}, 1, 2},
      {{"adapter=none", "train.parts=[experts, router]", "model.base=bf16", "mesh.ep=2", "mesh.tp=2",
        "mesh.expert_tp=2"},
       {},
       2,
       2,
       2},
      {{"adapter=none", "train.parts=[norms, head]", "mtp.loss_weight=0.3"}, {}, 1},
      // Some experts, laid over what is made dense and over what is held dense; of two ranks the first has most.
      {{"adapter=none", "train.parts=[experts, norms]", "train.experts=[0, 3]", "mtp.loss_weight=0.3"}, {}, 1},
      {{"adapter=none", "train.parts=[experts]", "train.experts=[0, 2, 5]", "model.base=bf16", "model.compute=bf16",
        "mesh.ep=2"},
       {},
       2},
      {{"adapter.targets=[attention]", "train.parts=[experts]", "train.experts=[1-2]", "mesh.ep=2", "mesh.tp=2",
        "mesh.expert_tp=2"},
       {},
       2,
       2,
       2},
      {{"adapter=none", "train.experts=[1]", "model.base=nf4"}, {}, 1},
      // Beside adapters.
      {{"adapter.targets=[attention]", "train.parts=[experts, router, norms]", "mtp.loss_weight=0.3"}, {}, 1},
      {{"adapter.targets=[experts]", "adapter.rank=3", "train.parts=[attention, embedding, head]", "mesh.ep=2"}, {}, 2},
      // Embedding and head are one.
      {{"adapter=none", "model.base=fp32", "model.compute=fp32"}, {{"tie_word_embeddings", true}}, 1},
      {{"adapter=none", "train.parts=[embedding, head, dense_mlp]", "mtp.loss_weight=0.3", "mesh.ep=2"},
       {{"tie_word_embeddings", true}},
       2},
      // Biases of q, k and v, a shared expert behind a gate.
      {{"adapter=none", "train.parts=[attention, shared_expert, router]", "mesh.ep=2"}, kQwen2, 2},
      {{"adapter=none", "model.base=bf16"}, kQwen2, 1},
      {{"adapter.targets=[experts]"}, kQwen2, 1},
  };
  for (const Case& one : cases) {
    json object = kTinyV3;
    for (const auto& [key, value] : one.change.items()) object[key] = value;
    const Blueprint config = parse_blueprint(object, "config.json");
    const Recipe recipe = tiny_recipe(one.overrides);
    INFO(dump_resolved(recipe));
    const MemoryPlan plan = plan_memory(config, recipe, {1, 1, one.ep, one.tp, one.expert_tp}, {at::kCPU});
    Built built(config, recipe, one.ep, one.tp, one.expert_tp);
    Model& model = *built.model;

    int64_t plain = 0, trained = 0, working = 0, gradients = 0, aligned = 0;
    const int64_t frozen = model.slabs->kept_bytes();
    for (const PlainTensor& tensor : model.plain) plain += static_cast<int64_t>(tensor.held.nbytes());
    for (const Block& block : model.blocks) {
      if (block.has_correction_bias()) plain += static_cast<int64_t>(block.router()->bias().nbytes());
    }
    // By layer: gradients that exist at a time, and a rank's shards of each kind (dp is 1).
    std::map<LayerId, int64_t> by_layer;
    std::map<Replicas, int64_t> by_replicas, adapters;
    std::map<std::pair<LayerId, Replicas>, int64_t> flats;
    for (Parameter& parameter : model.parameters.all()) {
      // Weights lie end to end, each from a multiple of 128 numbers on.
      const bool weight = parameter.info().role == Role::kWeight;
      const int64_t flat = weight ? (parameter.numel() + 127) / 128 * 128 : parameter.numel();
      trained += parameter.numel();
      if (weight) flats[{parameter.info().layer, parameter.info().replicas}] += flat;
      else working += static_cast<int64_t>(parameter.working.nbytes());
      by_layer[parameter.info().layer] += static_cast<int64_t>(parameter.gradient().nbytes());
      by_replicas[parameter.info().replicas] += flat;
      if (!weight) adapters[parameter.info().replicas] += flat;
      aligned += weight;
      parameter.clear_gradient();
    }
    // Equal shards for all copies, of multiples of 128 numbers each.
    for (const auto& [place, flat] : flats) {
      const std::map<Replicas, int64_t> copies = {{Replicas::kEverywhere, one.ep * one.tp},
                                                  {Replicas::kTensorIndex, one.ep},
                                                  {Replicas::kExpertReplicas, one.tp},
                                                  {Replicas::kExpertTensorIndex, 1}};
      const int64_t ranks = copies.at(place.second), shard = ((flat + ranks - 1) / ranks + 127) / 128 * 128;
      working += shard * ranks * static_cast<int64_t>(c10::elementSize(model.parameters.compute()));
    }
    // The embedding's begin where head or MTP module add to them.
    const int64_t embedding = by_layer[LayerId::embedding()];
    const int64_t begun = model.mtp || config.tied_embeddings ? embedding : 0;
    for (const auto& [layer, bytes] : by_layer) {
      gradients = std::max(gradients, bytes + (layer == LayerId::embedding() ? 0 : begun));
    }
    if (model.mtp) gradients = std::max(gradients, by_layer[config.mtp()] + by_layer[config.turn()] + begun);
    const int64_t wide = model.parameters.compute() == at::kDouble ? 8 : 4,
                  copy = model.parameters.compute() == at::kBFloat16 ? 2 : 0;
    CHECK(plan.weights.device_bytes() == frozen);
    CHECK(part(plan, "frozen dense maps") + part(plan, "frozen experts") == frozen);
    CHECK(plan.plain_bytes == plain);
    CHECK(plan.trained_numbers == trained);
    CHECK(plan.scratch_elements == model.scratch_elements());
    CHECK(part(plan, "trained, working copies") == working);
    CHECK(part(plan, "gradients") == gradients);
    // Rounded up to whole shards, a group at a time, of weights to 128 numbers each.
    const auto on_rank = [&](std::map<Replicas, int64_t>& numbers) {
      return numbers[Replicas::kEverywhere] / (one.ep * one.tp) + numbers[Replicas::kTensorIndex] / one.ep +
             numbers[Replicas::kExpertReplicas] / one.tp + numbers[Replicas::kExpertTensorIndex];
    };
    const int64_t a_number = 4 * wide + copy;
    const int64_t exact = on_rank(by_replicas) * 4 * wide + on_rank(adapters) * copy;
    CHECK(planned_shards(plan) >= exact);
    CHECK(planned_shards(plan) <= exact + (one.ep * one.tp - 1) * 20 * (aligned > 0 ? 128 : 1) * a_number);
    if (one.ep * one.tp == 1) {
      Launch launch;
      Mesh mesh(launch, {1, 1, 1, 1});
      Partition partition(model.parameters, mesh);
      GradientReducer reducer(partition, mesh, SlabTier::kHost);
      Optimizer optimizer(partition, {});
      CHECK(planned_shards(plan) == held_bytes(optimizer, reducer));
    }
    int64_t whole = 0;
    for (const auto& [group, numbers] : plan.trained_by_group) whole += numbers;
    if (one.ep * one.tp == 1) CHECK(whole == trained);
  }
}

TEST_CASE("each stage of a pipeline holds what its plan says", "[memory]") {
  for (const auto& overrides : std::vector<std::vector<std::string>>{
           {"adapter.targets=[all_linear]", "model.base=nf4"},
           {"adapter.targets=[attention]", "model.base=bf16", "mtp.loss_weight=0.1", "mesh.pp_layers=[2, 1]"},
           {"adapter=none", "model.base=fp32", "model.compute=fp32"},
           {"adapter=none", "train.parts=[experts]", "train.experts=[0, 2]", "model.base=bf16"},
           {"adapter=none", "model.base=bf16", "mtp.loss_weight=0.1"}}) {
    const Blueprint config = parse_blueprint(kTinyV3, "config.json");
    std::vector<std::string> all = overrides;
    all.push_back("mesh.pp=2");
    const Recipe recipe = tiny_recipe(all);
    INFO(dump_resolved(recipe));
    const std::vector<MemoryPlan> plans = plan_stages(config, recipe, {2, 1, 1, 1}, {at::kCPU});
    REQUIRE(plans.size() == 2);
    int64_t most = 0;
    for (int64_t stage = 0; stage < 2; ++stage) {
      const MemoryPlan& plan = plans[stage];
      CHECK(plan.stage == stage);
      Built built(config, recipe, 1, 1, 1, plan.pipeline.stages[stage]);
      int64_t plain = 0, trained = 0;
      for (const PlainTensor& tensor : built.model->plain) plain += static_cast<int64_t>(tensor.held.nbytes());
      for (const Block& block : built.model->blocks) {
        if (block.has_correction_bias()) plain += static_cast<int64_t>(block.router()->bias().nbytes());
      }
      for (const Parameter& parameter : built.model->parameters.all()) trained += parameter.numel();
      CHECK(plan.plain_bytes == plain);
      CHECK(plan.weights.device_bytes() == built.model->slabs->kept_bytes());
      CHECK(plan.trained_numbers == trained);
      CHECK(plan.scratch_elements == built.model->scratch_elements());
      most = std::max(most, plan.host_bytes());
    }
    CHECK(fullest(plans).host_bytes() == most);
    CHECK(plans[0].trained_by_group == plans[1].trained_by_group);
  }
}

TEST_CASE("memory plan: experts that loads will choose are counted, on a rank at their most") {
  const Blueprint config = parse_blueprint(kTinyV3, "config.json");
  const Recipe recipe = tiny_recipe({"adapter.targets=[experts.up_proj]", "adapter.experts=top 3", "adapter.rank=4"});
  const int64_t an_expert = 4 * (64 + 32);
  for (const int64_t ep : {1, 4}) {
    const MemoryPlan plan = plan_memory(config, recipe, {1, 1, ep, 1}, {at::kCPU});
    CHECK(plan.trained_by_group == std::vector<std::pair<std::string, int64_t>>{{"experts", 2 * 3 * an_expert}});
    CHECK(plan.trained_numbers == 2 * (ep == 1 ? 3 : 2) * an_expert);
  }
  const Recipe weights = tiny_recipe({"adapter=none", "train.parts=[experts]", "train.experts=top 3"});
  const int64_t matrices = 3 * 64 * 32;
  for (const int64_t ep : {1, 4}) {
    const MemoryPlan plan = plan_memory(config, weights, {1, 1, ep, 1}, {at::kCPU});
    CHECK(plan.trained_by_group == std::vector<std::pair<std::string, int64_t>>{{"experts", 2 * 3 * matrices}});
    CHECK(plan.trained_numbers == 2 * (ep == 1 ? 3 : 2) * matrices);
  }
}

TEST_CASE("memory plan: DeepSeek-V3") {
  const Blueprint config = parse_blueprint(json::parse(kDeepseekV3Config), "config.json");
  CHECK(count_parameters(config) == 671'026'419'200);
  CHECK(count_parameters(config, true) == 671'026'419'200 + 11'610'068'224);
  CHECK(count_active_parameters(config) == 671'026'419'200 - 58 * 248 * int64_t{44'040'192});
  CHECK(linear_maps(config, false).size() == 61 * 5 + 3 * 3 + 58 * 6);

  const Recipe recipe = tiny_recipe(
      {"adapter.rank=32", "model.weights=pretrained", "mesh.ep=8", "train.batch=64", "data.max_tokens=4096"});
  const MemoryPlan plan = plan_memory(config, recipe, {1, 2, 8, 1}, {at::kCUDA});
  // Rank 32 on q_a, q_b, kv_a, kv_b, o: 32 x (sum of inputs and outputs), 61 layers.
  const int64_t a_layer = 32 * ((1536 + 7168) + (24576 + 1536) + (576 + 7168) + (32768 + 512) + (7168 + 16384));
  REQUIRE(plan.trained_by_group == std::vector<std::pair<std::string, int64_t>>{{"attention", 61 * a_layer}});
  CHECK(61 * a_layer == 194'013'184);
  CHECK(plan.trained_numbers == 61 * a_layer);
  // NF4 with fp32 absmax is 4.5 bits a number.
  CHECK(part(plan, "frozen dense maps") ==
        (int64_t{61} * (187'107'328 - 2'048) + int64_t{3} * 396'361'728 + int64_t{58} * 44'040'192) / 16 * 9);
  CHECK(part(plan, "frozen experts") == int64_t{653'908'770'816} / 8 / 16 * 9);
  // bf16 but for the correction bias in fp32.
  CHECK(plan.plain_bytes ==
        2 * (2 * int64_t{926'679'040} + 61 * (14'336 + 2'048) + 7'168 + int64_t{58} * 1'835'008) + 58 * 256 * 4);
  CHECK(plan.rows == 4 * 4096);
  // 0.87 MB a token of kept inputs, and 16 + 4 x 4 bytes of routing a token and expert layer: a token goes to four
  // groups of experts at most.
  CHECK(part(plan, "kept block inputs") == plan.rows * (61 * 7168 * 2 + 58 * (16 + 16)));
  // Over 16 ranks; three fp32 numbers and, of adapters, one bf16 each, and a fourth for the gradient.
  CHECK(part(plan, "optimizer") == plan.trained_numbers / 16 * 14);
  CHECK(part(plan, "summed gradients") == plan.trained_numbers / 16 * 4);
  CHECK(plan.host_bytes() == planned_shards(plan));
  CHECK(part(plan, "gradients") == a_layer * 4);
}

TEST_CASE("memory plan: DeepSeek-V3, sharded and streamed") {
  const Blueprint config = parse_blueprint(json::parse(kDeepseekV3Config), "config.json");
  const int64_t layer = int64_t{256} * 44'040'192 / 16 * 9, mixing = (187'107'328 - 2'048) / 16 * 9;
  const auto planned = [&](const std::vector<std::string>& overrides, const MeshShape& mesh, int64_t memory) {
    std::vector<std::string> all = {"adapter.rank=32", "train.batch=2", "data.max_tokens=16384"};
    all.insert(all.end(), overrides.begin(), overrides.end());
    return plan_memory(config, tiny_recipe(all), mesh, {at::kCUDA, memory, 0}, {.step = 16384});
  };
  // Two ranks with the same weights: each keeps half; of the layers each gathers the other half twice, less two at
  // either turn.
  const MemoryPlan halves = planned({"mesh.shard=all"}, {1, 2, 1, 1}, 0);
  CHECK(part(halves, "frozen experts") == 58 * layer / 2);
  CHECK(part(halves, "slabs on their way") == 2 * layer + 2 * (mixing + int64_t{396'361'728} / 16 * 9));
  const int64_t moe_mixing = mixing + int64_t{44'040'192} / 16 * 9,
                dense_mixing = mixing + int64_t{396'361'728} / 16 * 9;
  CHECK(halves.weights.gathered_bytes_per_step ==
        (2 * 56 * layer + 2 * (58 * moe_mixing + 3 * dense_mixing) - 2 * dense_mixing - 2 * moe_mixing) / 2);
  CHECK(halves.weights.copied_bytes_per_step == 0);
  // Experts are shared over EP: only what is dense has copies.
  CHECK(planned({"mesh.shard=all", "mesh.ep=2"}, {1, 1, 2, 1}, 0).weights.expert_shards == 1);
  // Each expert shared by two ranks: half its bytes, and no copy of them but over DP.
  const auto quarters = planned({"mesh.shard=all"}, {1, 2, 1, 2}, 0),
             shared = planned({"mesh.shard=all"}, {1, 2, 1, 2, 2}, 0),
             alone = planned({"mesh.shard=all"}, {1, 1, 1, 2, 2}, 0);
  CHECK(quarters.weights.expert_shards == 4);
  CHECK(shared.weights.expert_shards == 2);
  CHECK(part(shared, "frozen experts") == 58 * layer / 4);
  CHECK(quarters.weights.gathered_bytes_per_step - shared.weights.gathered_bytes_per_step ==
        2 * 56 * (layer / 4 * 3 - layer / 4));
  CHECK(alone.weights.expert_shards == 1);
  CHECK(part(alone, "frozen experts") == 58 * layer / 2);
  // One GPU of 140 GB: the fewest layers leave that make the rest fit; evenly spread, the copies as many as two ways
  // less the turns.
  const int64_t memory = 140'000'000'000;
  const MemoryPlan streamed = planned({}, {1, 1, 1, 1}, memory);
  const int64_t away = static_cast<int64_t>(streamed.weights.host_layers.size());
  CHECK(streamed.device_bytes() <= memory / 100 * 95);
  CHECK(streamed.device_bytes() + layer > memory / 100 * 95);
  CHECK(streamed.weights.host_bytes == away * layer);
  CHECK(streamed.weights.copied_bytes_per_step == 2 * (away - 2) * layer);
  CHECK(part(streamed, "frozen experts") == (58 - away) * layer);
  for (size_t i = 1; i < streamed.weights.host_layers.size(); ++i) {
    CHECK(streamed.weights.host_layers[i].number() - streamed.weights.host_layers[i - 1].number() <= 2);
  }
  // By amount, and all: dense maps go last.
  CHECK(planned({"offload.frozen=40GiB"}, {1, 1, 1, 1}, memory).weights.host_layers.size() ==
        (int64_t{40} << 30) / layer);
  const MemoryPlan all = planned({"offload.frozen=all"}, {1, 1, 1, 1}, memory);
  CHECK(all.weights.host_layers.size() == 58);
  CHECK(all.weights.host_bytes == 58 * layer + 58 * moe_mixing + 3 * dense_mixing);
  CHECK(planned({"offload.frozen=none"}, {1, 1, 1, 1}, memory).weights.host_bytes == 0);
  const MemoryPlan away_too = planned({"offload.activations=host"}, {1, 1, 1, 1}, 0);
  CHECK(part(away_too, "kept block inputs") == 61 * int64_t{16384} * 7168 * 2);
  CHECK(away_too.host_bytes() == 61 * int64_t{16384} * 7168 * 2 + away_too.trained_numbers * 18);
}

TEST_CASE("memory plan: gradients and the optimizer lie where the recipe says") {
  const Blueprint config = parse_blueprint(kTinyV3, "config.json");
  const auto plan_of = [&](std::vector<std::string> overrides, at::DeviceType device = at::kCUDA) {
    overrides.insert(overrides.end(), {"adapter=none", "model.base=bf16"});
    return plan_memory(config, tiny_recipe(overrides), {1, 1, 1, 1}, {device});
  };
  const MemoryPlan host = plan_of({}), between = plan_of({"offload.gradients=none"}),
                   device = plan_of({"offload.optimizer=none"});
  const int64_t sums = part(host, "summed gradients"), state = part(host, "optimizer");
  // 4 and 12 bytes of a number, the filling up to 128 of each tensor included.
  CHECK(sums >= 4 * host.trained_numbers);
  CHECK(sums <= 4 * (host.trained_numbers + 128 * 200));
  CHECK(state == 3 * sums);
  // Two buffers each way, no longer than the longest shard, which is one of these; 4 bytes in, 2 out.
  const int64_t longest = part(host, "gradients on their way") / 4;
  CHECK(host.host_bytes() == sums + state + 2 * 2 * longest);
  CHECK(between.host_bytes() == state + 2 * (2 + 4) * longest);
  CHECK(device.host_bytes() == 0);
  CHECK(device.device_bytes() == between.device_bytes() + state);
  // One layer's sum on its way is less than all of them.
  CHECK(between.device_bytes() - host.device_bytes() == sums - part(host, "gradients on their way"));
  CHECK(part(device, "gradients on their way") == 0);
  // A CPU's memory is one.
  CHECK(plan_of({"offload.optimizer=none"}, at::kCPU).host_bytes() == plan_of({}, at::kCPU).host_bytes());
}

TEST_CASE("memory plan: the copy that a checkpoint is written from") {
  json object = kTinyV3;
  object.update({{"hidden_size", 1024}, {"vocab_size", 4096}});
  const Blueprint config = parse_blueprint(object, "config.json");
  const auto plan_of = [&](std::vector<std::string> overrides, int64_t host_memory_bytes = 0) {
    overrides.insert(overrides.end(), {"adapter=none", "model.base=bf16"});
    return plan_memory(config, tiny_recipe(overrides), {1, 1, 1, 1}, {at::kCUDA, 0, 0, host_memory_bytes});
  };
  const MemoryPlan saves = plan_of({"checkpoint.every_steps=5"}), at_end = plan_of({});
  // Master and two moments, all that the optimizer keeps of weights; 64 MiB is what auto asks for.
  CHECK(saves.copied_save_bytes == part(saves, "optimizer"));
  CHECK(part(saves, "checkpoint on its way") == saves.copied_save_bytes);
  REQUIRE(saves.copied_save_bytes > 64 << 20);
  CHECK(saves.host_bytes() == planned_shards(saves) + part(saves, "updates on their way") + saves.copied_save_bytes);
  CHECK(at_end.copied_save_bytes == 0);
  CHECK(at_end.host_bytes() == planned_shards(at_end) + part(at_end, "updates on their way"));
  CHECK(plan_of({"checkpoint.every_minutes=5"}).copied_save_bytes > 0);
  CHECK(plan_of({"checkpoint.every_steps=5", "checkpoint.async=false"}).copied_save_bytes == 0);
  CHECK(plan_of({"checkpoint.async=true"}).copied_save_bytes > 0);
  // Where the host has no room for it, auto writes at once.
  CHECK(plan_of({"checkpoint.every_steps=5"}, saves.host_bytes()).copied_save_bytes == 0);
  CHECK(plan_of({"checkpoint.every_steps=5"}, 2 * saves.host_bytes()).copied_save_bytes > 0);
  // And what is small.
  const MemoryPlan small = plan_memory(config, tiny_recipe({"checkpoint.every_steps=5"}), {1, 1, 1, 1}, {at::kCUDA});
  CHECK(small.copied_save_bytes == 0);
}

TEST_CASE("memory plan: a group of a pipeline has no more rows than its sequences") {
  json object = kTinyV3;
  object["num_hidden_layers"] = 8;
  const Blueprint config = parse_blueprint(object, "config.json");
  const auto planned = [&](const std::vector<std::string>& overrides, const StepRows& rows = {}) {
    std::vector<std::string> all = {"adapter=none",   "model.base=bf16",      "mesh.pp=2",
                                    "train.batch=16", "data.max_tokens=4096", "train.slice_tokens=8192"};
    all.insert(all.end(), overrides.begin(), overrides.end());
    return plan_memory(config, tiny_recipe(all), {2, 1, 1, 1}, {at::kCUDA}, rows);
  };
  // Weights that are held dense go through in a group a sequence.
  const MemoryPlan each = planned({});
  REQUIRE(each.pipeline.groups == 16);
  CHECK(each.step_rows == 16 * 4096);
  CHECK(each.rows == 4096);
  CHECK(planned({"mesh.pp_groups=5"}).rows == 4 * 4096);
  CHECK(planned({"mesh.pp_groups=40"}).rows == 4096);
  CHECK(planned({}, {.step = 40000}).rows == 4096);
  CHECK(planned({"mesh.pp_groups=5"}, {.step = 30000}).rows == 6000 + 4096);
  CHECK(planned({"mesh.pp_groups=5"}, {.step = 30000, .group = 7000}).rows == 7000);
}

TEST_CASE("memory plan: what leaves beside an adapter is counted with it") {
  const auto numbers = [](const std::vector<std::string>& overrides, const json& change = json::object()) {
    json object = kTinyV3;
    for (const auto& [key, value] : change.items()) object[key] = value;
    const Blueprint config = parse_blueprint(object, "config.json");
    return plan_memory(config, tiny_recipe(overrides), {1, 1, 1, 2}, {at::kCPU}).adapter_numbers;
  };
  const std::string adapter = "adapter.targets=[o_proj]", tp = "mesh.tp=2";
  const int64_t alone = numbers({adapter, tp});
  // Three layers' two norms of the width and those of both latents, and the last; each rank of the axis has all.
  CHECK(numbers({adapter, tp, "train.parts=[norms]"}) - alone == 3 * (2 * 64 + 24 + 16) + 64);
  CHECK(numbers({adapter, tp, "router.train=full"}) - alone == 2 * 8 * 64);
  // Of which a rank has half.
  CHECK(numbers({adapter, tp, "train.parts=[embedding, head]"}) - alone == 2 * 320 * 64);
  CHECK(numbers({adapter, tp, "train.parts=[embedding, head]"}, {{"tie_word_embeddings", true}}) == alone);
  // With the weights alone leave experts, and all of the MTP module.
  CHECK(numbers({adapter, tp, "train.parts=[experts]"}) == alone);
  const int64_t with_mtp = numbers({adapter, tp, "mtp.loss_weight=0.3"});
  CHECK(numbers({adapter, tp, "mtp.loss_weight=0.3", "router.train=full"}) - with_mtp == 2 * 8 * 64);
}

TEST_CASE("memory plan: targets without a match") {
  const Blueprint config = parse_blueprint(kTinyV3, "config.json");
  const std::string message = message_of<UserError>(
      [&] { plan_memory(config, tiny_recipe({"adapter.targets=[q_proj]"}), {1, 1, 1, 1}, {at::kCPU}); });
  CHECK(contains(message, "q_proj"));
}
