// The cut of a pipeline against all cuts there are, and the number of groups against the time that its formula gives.
#include "trainer/plan/pipeline_plan.h"

#include <cmath>
#include <functional>

#include <nlohmann/json.hpp>

#include "moe/families/family.h"
#include "parallel/base/error.h"
#include "tests/support/catch.h"
#include "tests/support/deepseek_v3_config.h"
#include "tests/support/message_of.h"
#include "trainer/recipe/recipe_load.h"

using namespace moetune;

namespace {

double dearest(const std::vector<double>& costs, const std::vector<int64_t>& sizes) {
  double most = 0.0;
  size_t item = 0;
  for (const int64_t size : sizes) {
    double sum = 0.0;
    for (int64_t i = 0; i < size; ++i) sum += costs.at(item++);
    most = std::max(most, sum);
  }
  CHECK(item == costs.size());
  return most;
}

/// The least that any cut gives.
double least(const std::vector<double>& costs, int64_t parts) {
  double best = INFINITY;
  std::vector<int64_t> sizes;
  const std::function<void(int64_t)> cut = [&](int64_t left) {
    if (static_cast<int64_t>(sizes.size()) == parts - 1) {
      if (left < 1) return;
      sizes.push_back(left);
      best = std::min(best, dearest(costs, sizes));
      sizes.pop_back();
      return;
    }
    for (int64_t size = 1; size < left; ++size) {
      sizes.push_back(size);
      cut(left - size);
      sizes.pop_back();
    }
  };
  cut(static_cast<int64_t>(costs.size()));
  return best;
}

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

TEST_CASE("no cut of a pipeline has a cheaper dearest stage", "[pipeline]") {
  const std::vector<std::vector<double>> rows = {
      {1, 1, 1, 1, 1, 1}, {9, 1, 1, 1, 1, 1, 1, 9}, {1, 2, 3, 4, 5, 6, 7}, {5, 1, 1, 1, 0, 0, 8, 2, 2}, {3}};
  for (const std::vector<double>& costs : rows) {
    for (int64_t parts = 1; parts <= static_cast<int64_t>(costs.size()); ++parts) {
      const std::vector<int64_t> sizes = cut_by_cost(costs, parts);
      CHECK(sizes.size() == static_cast<size_t>(parts));
      CHECK(dearest(costs, sizes) == least(costs, parts));
    }
  }
  // Of equal cuts the evenest.
  CHECK(cut_by_cost({1, 1, 1, 1, 4}, 3) == std::vector<int64_t>{2, 2, 1});
}

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
