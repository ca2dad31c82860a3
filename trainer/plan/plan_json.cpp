#include "trainer/plan/plan_json.h"

#include <nlohmann/json.hpp>

#include "moe/inventory.h"
#include "parallel/base/choice.h"

namespace moetune {
namespace {

using Json = nlohmann::ordered_json;

/// Numbers of attention in a layer, with its own norms and biases; and of one routed expert.
int64_t attention_numbers(const Blueprint& blueprint) {
  int64_t numbers = 0;
  for (const TensorSpec& tensor : blueprint.block_tensors(blueprint.blocks(false).back())) {
    const bool is_of_attention = tensor.role >= TensorRole::kQ && tensor.role <= TensorRole::kSinks;
    if (is_of_attention) numbers += tensor.numel();
  }
  return numbers;
}

int64_t expert_numbers(const Blueprint& blueprint) {
  int64_t numbers = 0;
  for (const LayerId layer : blueprint.blocks(false)) {
    if (!blueprint.has_experts(layer)) continue;
    for (const LinearMap& map : block_maps(blueprint, layer)) numbers += map.stack > 0 ? map.outputs * map.inputs : 0;
    break;
  }
  return numbers;
}

Json memory_json(const RunPlan& plan) {
  Json parts = Json::array();
  std::vector<int64_t> whole;
  Json kept = Json::array();
  for (const MemoryPlan& stage : plan.stages) {
    whole.push_back(stage.kept.all);
    kept.push_back(kept_json(stage.kept));
  }
  for (const PlannedBytes& part : plan.parts) {
    parts.push_back({{"name", part.name},
                     {"bytes", part.bytes},
                     {"where", part.on_host ? "host" : "device"},
                     {"phase", part.phase},
                     {"formula", part.formula}});
  }
  return {{"worst_rank", rank_at(plan.mesh, {.pp = plan.memory.stage})},
          {"why", "ranks hold equal shares; that of the most tokens, and of the first parts, is planned"},
          {"device_bytes", plan.device_bytes},
          {"host_bytes", plan.host_bytes},
          {"device_limit_bytes", plan.device_limit_bytes},
          {"host_limit_bytes", plan.host_limit_bytes},
          {"allocator_bytes", plan.memory.device_bytes()},
          {"fits", plan.fits()},
          {"kept_layers", *std::min_element(whole.begin(), whole.end())},
          {"kept_layers_of_stages", whole},
          {"kept", kept},
          {"host_layers", plan.memory.weights.host_layers.size()},
          {"parts", parts}};
}

/// Of several stages, who has which group when; null for one.
Json pipeline_json(const RunPlan& plan) {
  const PipelinePlan& pipeline = plan.memory.pipeline;
  if (pipeline.stages.size() == 1) return nullptr;
  Json stages = Json::array();
  for (const Stage& stage : pipeline.stages) stages.push_back({{"holds", to_string(stage)}, {"passes", Json::array()}});
  for (const StagePass& pass : plan.time.schedule.passes) {
    stages[pass.stage]["passes"].push_back(
        {pass.group, pass.up ? "up" : "down", pass.begin_s, pass.end_s, pass.update_wait_s, pass.arrives_s});
  }
  return {{"groups", pipeline.groups},
          {"bubble", pipeline.bubble()},
          {"step_s", plan.time.schedule.seconds},
          {"stages", stages}};
}

Json time_json(const RunPlan& plan) {
  const StepTime& expected = plan.time.expected;
  Json parts = Json::array(), spans = Json::array();
  for (const TimePart& part : expected.parts) {
    parts.push_back({{"name", part.name}, {"s", part.busy_s}, {"exposed_s", part.exposed_s}});
  }
  for (const LaneSpan& span : expected.spans) {
    spans.push_back({to_string(span.lane), span.name, span.begin_s, span.end_s});
  }
  return {
      {"step_s", {{"low", plan.time.low.seconds}, {"expected", expected.seconds}, {"high", plan.time.high.seconds}}},
      {"tokens_per_s", plan.time.tokens_per_s},
      {"tokens_per_s_per_gpu", plan.time.tokens_per_s / static_cast<double>(plan.request.gpus)},
      {"parts", parts},
      {"calibrated", plan.time.calibrated},
      {"computing", plan.request.machine.computing.value},
      {"spans", spans},
      {"pipeline", pipeline_json(plan)}};
}

Json cost_json(const RunPlan& plan) {
  const std::optional<Price>& price = plan.request.price;
  if (!price) {
    return {{"dollars", nullptr},
            {"dollars_low", nullptr},
            {"dollars_high", nullptr},
            {"dollars_per_million_tokens", nullptr},
            {"dollars_per_million_tokens_low", nullptr},
            {"dollars_per_million_tokens_high", nullptr},
            {"price_per_gpu_hour", nullptr},
            {"price_source", nullptr}};
  }
  const PlannedRun& run = plan.run;
  return {{"dollars", plan.dollars()},
          {"dollars_low", plan.dollars(run.hours_low)},
          {"dollars_high", plan.dollars(run.hours_high)},
          {"dollars_per_million_tokens", plan.dollars_per_million_tokens()},
          {"dollars_per_million_tokens_low", plan.dollars_per_million_tokens(run.hours_low)},
          {"dollars_per_million_tokens_high", plan.dollars_per_million_tokens(run.hours_high)},
          {"price_per_gpu_hour", price->dollars_per_gpu_hour},
          {"price_source", price->source}};
}

Json collectives_json(const PlanRequest& request) {
  const auto of = [](const CollectiveLatency& latency, double network_hop_s) {
    return Json{{"start_s", latency.start_s}, {"hop_s", latency.hop_s}, {"network_hop_s", network_hop_s}};
  };
  const MessageLatency& latency = request.machine.latency;
  return {{"small", of(latency.small, request.network.small_hop_s)},
          {"large", of(latency.large, request.network.large_hop_s)},
          {"source", request.machine.latency_source}};
}

}  // namespace

Json kept_json(const KeptBlocks& kept) {
  return {{"attention", kept.attention}, {"experts", kept.experts}, {"all", kept.all}};
}

Json plan_json(const RunPlan& plan, const std::vector<std::string>& changes) {
  const PlanRequest& request = plan.request;
  const Blueprint& blueprint = request.blueprint;
  const Recipe& recipe = request.recipe;
  const int64_t adapter = plan.memory.adapter_numbers;
  constexpr int64_t kExported = 4;  // adapters leave in fp32
  Json figures = Json::object();
  for (const auto& [name, rate] : request.machine.figures) {
    figures[name] = {{"value", rate.value}, {"source", rate.source}};
  }
  Json json = {{"model",
                {{"parameters", count_parameters(blueprint)},
                 {"active_parameters", count_active_parameters(blueprint)},
                 {"attention_parameters_per_layer", attention_numbers(blueprint)},
                 {"expert_parameters", expert_numbers(blueprint)},
                 {"layers", blueprint.num_layers()},
                 {"experts", blueprint.router.experts},
                 {"model_type", blueprint.model_type},
                 {"path", recipe.model.path}}},
               {"adapter", {{"parameters", adapter}, {"bytes", adapter * kExported}}},
               {"mesh",
                {{"gpus", request.gpus},
                 {"pp", plan.mesh.pp},
                 {"dp", plan.mesh.dp},
                 {"ep", plan.mesh.ep},
                 {"tp", plan.mesh.tp},
                 {"shard", to_string(recipe.mesh.shard)}}},
               {"machine",
                {{"name", request.machine.name},
                 {"device", request.machine.device_name},
                 {"gpus_per_host", request.machine.ranks_per_host},
                 {"network", request.network.name},
                 {"host_memory_bytes_per_s", request.machine.host_memory_bytes_per_s},
                 {"collectives", collectives_json(request)},
                 {"figures", figures}}},
               {"memory", memory_json(plan)},
               {"time", time_json(plan)},
               {"run",
                {{"steps", plan.run.steps},
                 {"tokens", plan.run.tokens},
                 {"hours", plan.run.hours},
                 {"hours_low", plan.run.hours_low},
                 {"hours_high", plan.run.hours_high},
                 {"load_s", plan.run.load_s},
                 {"evaluation_s", plan.run.evaluation_s},
                 {"save_s", plan.run.save_s},
                 {"sequences_a_step", recipe.train.batch},
                 {"max_tokens", recipe.data.max_tokens},
                 {"data", request.data.source()}}},
               {"cost", cost_json(plan)}};
  if (!plan.fits()) json["changes_to_fit"] = changes;
  return json;
}

}  // namespace moetune
