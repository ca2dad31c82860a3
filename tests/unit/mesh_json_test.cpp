// The facts of a mesh's pictures: ranks and groups as the mesh has them, rows and bytes as docs/parallelism.md has
// them.
#include <nlohmann/json.hpp>

#include <string>
#include <vector>

#include "tests/support/catch.h"
#include "trainer/plan/mesh_json.h"
#include "trainer/recipe/recipe_load.h"

using namespace moetune;

namespace {

using Json = nlohmann::ordered_json;
using Names = std::vector<std::string>;

PlannedMesh planned(Names overrides, int64_t ranks_per_host = 4) {
  const std::string folder = MOETUNE_SOURCE_DIR "/docs/pictures";
  overrides.push_back("model.path=" + folder);
  return plan_mesh(load_recipe(folder + "/example.yaml", overrides), 0, ranks_per_host);
}

Json facts(const Names& overrides) { return Json::parse(mesh_json(planned(overrides))); }

}  // namespace

TEST_CASE("mesh_json: a rank is its places along the axes, read as one number") {
  const PlannedMesh mesh = planned({"mesh.dp=3", "mesh.ep=4", "mesh.tp=2"});
  const Json axes = Json::parse(mesh_json(mesh))["axes"];
  for (int64_t rank = 0; rank < mesh.shape.num_ranks(); ++rank) {
    const MeshCoordinates place = coordinates_of(mesh.shape, rank);
    const Json expected{{"pp", place.pp}, {"dp", place.dp}, {"ep", place.ep}, {"tp", place.tp}};
    int64_t read = 0;
    for (const auto& [name, ranks] : axes.items()) {
      read = read * ranks.get<int64_t>() + expected[name].get<int64_t>();
    }
    CHECK(read == rank);
  }
}

TEST_CASE("mesh_json: groups and shares are those of docs/parallelism.md") {
  const Json json = facts({});
  CHECK(json["ranks_per_host"] == 4);
  CHECK(json["groups"]["ep"] == Names{"ep"});
  CHECK(json["groups"]["tp"] == Names{"tp"});
  CHECK(json["groups"]["expert_replicas"].get<Names>() == Names{"dp", "tp"});
  CHECK(json["groups"]["data"].get<Names>() == Names{"dp", "ep"});
  CHECK(json["groups"]["stage"].get<Names>() == Names{"dp", "ep", "tp"});
  const Json& weights = json["weights"];
  CHECK(weights["dense"]["along"].get<Names>() == Names{"dp", "ep"});
  CHECK(weights["experts"]["along"].get<Names>() == Names{"dp", "tp"});
  CHECK(weights["dense"]["shards"] == 4);
  CHECK(weights["experts"]["shards"] == 4);
  CHECK(json["holdings"]["experts"].get<Names>() == Names{"0-127", "128-255"});
  CHECK(json["holdings"]["heads"].get<Names>() == Names{"0-63", "64-127"});
}

TEST_CASE("mesh_json: experts in parts are shared by those that hold the same part") {
  const Json json = facts({"mesh.expert_tp=2"});
  CHECK(json["holdings"]["features"].get<Names>() == Names{"0-1023", "1024-2047"});
  CHECK(json["weights"]["experts"]["along"].get<Names>() == Names{"dp"});
  CHECK(json["weights"]["experts"]["shards"] == 2);
}

TEST_CASE("mesh_json: rows, widths and bytes") {
  // 32 sequences of 4096 tokens on 4 places, halved by TP; 1536 + 512 + 64 latents.
  const Json json = facts({});
  CHECK(json["step"]["rows"] == 16384);
  CHECK(json["step"]["number_bytes"] == 2);
  CHECK(json["step"]["gradient_bytes"] == 4);
  CHECK(json["model"]["latents"] == 2112);
  CHECK(json["model"]["width"] == 7168);
  CHECK(json["model"]["chosen"] == 8);
  CHECK(json["model"]["moe_layers"] == 58);
  CHECK(json["model"]["shares_expert"] == true);
  CHECK(json["model"]["gates_shared_expert"] == false);
  // 128 experts of 3 * 7168 * 2048 numbers, 0.5 + 4/64 bytes each, and what rounds them
  const auto slab = json["weights"]["experts"]["slab_bytes"].get<double>();
  CHECK(slab == Approx(128 * 3 * 7168 * 2048.0 * 0.5625).epsilon(0.001));
  CHECK(json["weights"]["experts"]["shard_bytes"].get<double>() == Approx(slab / 4).epsilon(0.001));
  CHECK(facts({"adapter=none", "model.base=bf16"})["weights"]["experts"]["slab_bytes"] == 0);
}

TEST_CASE("mesh_json: a token goes to the ranks of its groups of experts") {
  // 8 experts of 4 of 8 groups
  const auto most = [](const std::string& ep) { return facts({"mesh.dp=1", "mesh.tp=1", ep})["step"]["most_sends"]; };
  CHECK(most("mesh.ep=1") == 0);
  CHECK(most("mesh.ep=2") == 1);
  CHECK(most("mesh.ep=8") == 4);
  CHECK(most("mesh.ep=16") == 8);
}

TEST_CASE("mesh_json: slabs that are fetched, and when") {
  const Json fetches = facts({})["fetches"], &round = fetches["round"];
  CHECK(fetches["slabs"] == 58);
  const auto used = [](const Json& of) {
    std::vector<int> slabs;
    for (const Json& use : of["uses"]) slabs.push_back(use["slab"]);
    return slabs;
  };
  CHECK(used(round) == std::vector<int>{0, 1, 2, 3, 4, 5, 5, 4, 3, 2, 1, 0});
  CHECK(round["uses"][5]["up"] == false);
  CHECK(round["uses"][6]["up"] == true);
  CHECK(fetches["groups"] == 1);
  CHECK(fetches["a_step"] == 2 * (58 - 2));
  CHECK(round["before"].get<std::vector<int>>() == std::vector<int>{0, 1});
  std::vector<std::vector<int>> found;  // slab, buffer, time
  for (const Json& fetch : round["fetches"]) found.push_back({fetch["slab"], fetch["buffer"], fetch["time"]});
  CHECK(found == std::vector<std::vector<int>>{
                     {2, 0, 1}, {3, 1, 2}, {4, 0, 3}, {5, 1, 4}, {3, 1, 7}, {2, 0, 8}, {1, 1, 9}, {0, 0, 10}});
  const Json none = facts({"mesh.shard=none", "offload.frozen=none"})["fetches"];
  CHECK(none["slabs"] == 0);
  CHECK(none["round"]["fetches"].empty());
  CHECK(facts({"mesh.shard=none"})["fetches"]["slabs"].get<int64_t>() < 58);  // those of host memory
  // A stage fetches its own layers: of 61 three dense ones are in the first.
  const PlannedMesh stages =
      planned({"mesh.pp=4", "mesh.pp_layers=[15, 15, 15, 16]", "mesh.pp_groups=3", "train.keep=none"});
  const Json cut = Json::parse(mesh_json(stages));
  CHECK(cut["fetches"]["slabs"] == std::vector<int64_t>{12, 15, 15, 16}.at(stages.plan.stage));
  CHECK(cut["weights"]["layers"] == cut["fetches"]["slabs"]);
  CHECK(cut["weights"]["stage"] == stages.plan.stage);
  CHECK(cut["stages"][3]["layers"] == 16);
  for (const Json& stage : cut["stages"]) CHECK(stage["kept"]["attention"] == 0);
  const Json kept = facts({"mesh.pp=4", "mesh.pp_layers=[15, 15, 15, 16]", "train.keep=2"});
  for (const Json& stage : kept["stages"]) CHECK(stage["kept"]["all"] == 2);
  const Json some = facts({"mesh.pp=4", "mesh.pp_layers=[15, 15, 15, 16]", "train.keep=experts"});
  CHECK(some["stages"][3]["kept"] == Json{{"attention", 16}, {"experts", 16}, {"all", 0}});
  // Each group uses them once more both ways, in the order of the stage's program. The last of two stages goes down and
  // up by turns: at each of six turns two of 55 slabs are at hand. The first goes down twice before it goes up, and at
  // last up twice: down, down, up, down, up, up; where a way follows one like it, none of its 52 is at hand.
  const auto groups = [](const std::string& layers) {
    return facts({"mesh.pp=2", layers, "mesh.pp_groups=3", "train.keep=none", "offload.frozen=all"})["fetches"];
  };
  const Json last = groups("mesh.pp_layers=[6, 55]"), first = groups("mesh.pp_layers=[55, 6]");
  CHECK(last["a_step"] == 6 * (55 - 2));
  CHECK(used(last["round"]) == std::vector<int>{0, 1, 2, 2, 1, 0, 0, 1, 2, 2, 1, 0});
  CHECK(first["a_step"] == 4 * (52 - 2) + 2 * 52);
  CHECK(used(first["round"]) == std::vector<int>{0, 1, 2, 0, 1, 2, 2, 1, 0, 2, 1, 0});
  CHECK(first["round"]["uses"][3]["group"] == 1);
}
