#include "trainer/plan/mesh_json.h"

#include <nlohmann/json.hpp>

#include <algorithm>
#include <vector>

#include "moe/inventory.h"
#include "parallel/bytes/weight_store.h"
#include "trainer/plan/plan_json.h"

namespace moetune {
namespace {

using Json = nlohmann::ordered_json;
using Axes = std::vector<std::string>;

int64_t moe_layers(const Blueprint& blueprint) { return blueprint.num_layers() - blueprint.num_dense_layers(); }

Json model_json(const Blueprint& blueprint) {
  const AttentionSpec& attention = blueprint.attention();
  return {{"type", blueprint.model_type},
          {"parameters", count_parameters(blueprint)},
          {"layers", blueprint.num_layers()},
          {"moe_layers", moe_layers(blueprint)},
          {"width", blueprint.width},
          {"latents", attention.q_lora.value_or(blueprint.width) + attention.kv_lora + attention.rotary_dim},
          {"heads", attention.heads},
          {"experts", blueprint.router.experts},
          {"chosen", blueprint.router.top_k},
          {"shares_expert", blueprint.experts.shared_width > 0},
          {"gates_shared_expert", blueprint.experts.shared_gate}};
}

/// What the ranks hold: experts by their place along ep, heads and features of each expert along tp.
Json holdings_json(const PlannedMesh& mesh) {
  const MeshShape& shape = mesh.shape;
  Json experts = Json::array(), heads = Json::array(), features = Json::array();
  for (int64_t ep = 0; ep < shape.ep; ++ep) experts.push_back(run_of(ep, shape.ep, mesh.blueprint.router.experts));
  for (int64_t tp = 0; tp < shape.tp; ++tp) {
    heads.push_back(run_of(tp, shape.tp, mesh.blueprint.attention().heads));
    features.push_back(expert_features_of(mesh, tp));
  }
  return {{"experts", experts}, {"heads", heads}, {"features", features}};
}

/// Other ranks that a token goes to at the most: the chosen experts lie in the chosen groups.
int64_t most_sends(const RouterSpec& router, int64_t ep) {
  const int64_t ranks = std::min(router.top_k, ep - 1);
  const bool groups_are_ranks = router.num_groups > 1 && (ep % router.num_groups == 0 || router.num_groups % ep == 0);
  if (!groups_are_ranks) return ranks;
  return std::min(ranks, router.top_groups * std::max<int64_t>(1, ep / router.num_groups));
}

Json step_json(const PlannedMesh& mesh) {
  constexpr int64_t kGradient = 4;  // they are summed in fp32 at least
  return {{"rows", mesh.plan.held_rows},
          {"number_bytes", mesh.compute_bytes},
          {"gradient_bytes", std::max(kGradient, mesh.compute_bytes)},
          {"most_sends", most_sends(mesh.blueprint.router, mesh.shape.ep)}};
}

bool holds_experts(const PlacedSlab& slab) { return slab.kind == SlabKind::kExperts; }

Json weights_json(const PlannedMesh& mesh) {
  const WeightPlacement& held = mesh.plan.weights;
  const bool in_parts = mesh.shape.expert_tp > 1;
  return {{"dense", {{"shards", held.dense_shards}, {"along", Axes{"dp", "ep"}}, {"bytes", held.dense_bytes}}},
          {"experts",
           {{"shards", held.expert_shards},
            {"along", in_parts ? Axes{"dp"} : Axes{"dp", "tp"}},
            {"bytes", held.expert_bytes},
            {"slab_bytes", held.expert_slab_bytes},
            {"shard_bytes", WeightStore::shard_bytes(held.expert_slab_bytes, held.expert_shards)}}},
          {"stage", mesh.plan.stage},
          {"layers", std::count_if(held.slabs.begin(), held.slabs.end(), holds_experts)},
          {"host_bytes", held.host_bytes},
          {"host_layers", held.host_layers.size()},
          {"copied_bytes", held.copied_bytes_per_step},
          {"gathered_bytes", held.gathered_bytes_per_step}};
}

/// Layers whose slabs of experts a picture has room for, of a step in one group of documents, and in several, of which
/// it shows two; more take turns alike.
constexpr int kMostSlabs = 6, kMostSlabsOfGroups = 3;
constexpr int64_t kGroupsDrawn = 2;

/// Slabs of experts that do not stay where they are used, those of the stage, and what their buffers do in a step that
/// follows others: the uses are those of the stage's program.
Json fetches_json(const PlannedMesh& mesh) {
  std::vector<LayerId> layers;
  for (const PlacedSlab& slab : mesh.plan.weights.slabs) {
    if (holds_experts(slab) && slab.is_fetched()) layers.push_back(slab.layer);
  }
  const int64_t groups = mesh.plan.pipeline.groups;
  const int drawn = std::min(static_cast<int>(layers.size()), groups > 1 ? kMostSlabsOfGroups : kMostSlabs);
  std::vector<int> all, uses;
  Json shown = Json::array();
  for (const StepOp& op : mesh.program) {
    for (const SlabUse& use : slab_uses(mesh.blueprint, op)) {
      const auto found = std::find(layers.begin(), layers.end(), use.layer);
      if (use.kind != SlabKind::kExperts || found == layers.end()) continue;
      const int slab = static_cast<int>(found - layers.begin());
      all.push_back(slab);
      if (slab >= drawn || op.group >= kGroupsDrawn) continue;
      uses.push_back(slab);
      shown.push_back({{"slab", slab}, {"up", op.kind == StepOp::Kind::kUp}, {"group", op.group}});
    }
  }
  const FetchRound round = fetches_of_round(uses, Rounds::kFollow);
  Json fetches = Json::array();
  for (const FetchRound::Timed& fetch : round.fetches) {
    fetches.push_back({{"slab", fetch.slab}, {"buffer", fetch.buffer}, {"time", fetch.time}});
  }
  return {{"slabs", layers.size()},
          {"groups", groups},
          {"a_step", fetches_of_round(all, Rounds::kFollow).fetches.size()},
          {"round", {{"slabs", drawn}, {"uses", shown}, {"before", round.before}, {"fetches", fetches}}}};
}

Json stages_json(const PlannedMesh& mesh) {
  Json stages = Json::array();
  for (const Stage& stage : mesh.plan.pipeline.stages) {
    stages.push_back({{"first_layer", stage.first_block().number()},
                      {"layers", stage.num_blocks()},
                      {"kept", kept_json(mesh.kept.at(stages.size()))},
                      {"holds", to_string(stage)}});
  }
  return stages;
}

}  // namespace

std::string mesh_json(const PlannedMesh& mesh) {
  const MeshShape& shape = mesh.shape;
  return Json{{"name", to_string(shape)},
              {"ranks_per_host", mesh.ranks_per_host},
              {"axes", {{"pp", shape.pp}, {"dp", shape.dp}, {"ep", shape.ep}, {"tp", shape.tp}}},
              {"expert_tp", shape.expert_tp},
              {"groups",
               {{"ep", Axes{"ep"}},
                {"tp", Axes{"tp"}},
                {"expert_replicas", Axes{"dp", "tp"}},
                {"data", Axes{"dp", "ep"}},
                {"stage", Axes{"dp", "ep", "tp"}},
                {"pp", Axes{"pp"}}}},
              {"stages", stages_json(mesh)},
              {"model", model_json(mesh.blueprint)},
              {"holdings", holdings_json(mesh)},
              {"step", step_json(mesh)},
              {"weights", weights_json(mesh)},
              {"fetches", fetches_json(mesh)}}
      .dump();
}

}  // namespace moetune
