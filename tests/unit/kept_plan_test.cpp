// What `train.keep: auto` keeps by the plan: as much as fits, and less of it where less is left.
#include "moe/families/family.h"
#include "parallel/base/error.h"
#include "tests/support/catch.h"
#include "tests/support/planned_model.h"
#include "trainer/plan/memory_plan.h"

using namespace moetune;
using nlohmann::json;

TEST_CASE("memory plan: auto keeps what fits, and less of it where a step took more than planned") {
  const Blueprint config = parse_blueprint(kTinyV3, "config.json");
  const Recipe recipe = tiny_recipe({"train.batch=64", "data.max_tokens=1024", "offload.frozen=none"});
  const auto planned = [&](int64_t memory) {
    return plan_memory(config, recipe, {1, 1, 1, 1}, {.device = at::kCUDA, .device_memory_bytes = memory});
  };
  const int64_t blocks = config.num_layers();
  const MemoryPlan nothing = planned(1), all = planned(int64_t{1} << 40);
  CHECK(nothing.kept == KeptBlocks{});
  CHECK(all.kept == KeptBlocks::whole(blocks));
  CHECK(all.unkept_bytes == nothing.device_bytes());
  // Between the two it climbs, and each step takes memory.
  const int64_t room = all.device_bytes() - nothing.device_bytes();
  int64_t steps = 0;
  for (int64_t eighth = 1; eighth < 8; ++eighth) {
    const int64_t limit = nothing.device_bytes() + room * eighth / 8;
    const MemoryPlan plan = planned(static_cast<int64_t>(static_cast<double>(limit) / (1.0 - kKeepReserve)) + 1);
    CHECK(plan.device_bytes() <= limit);
    CHECK(plan.kept.steps() >= steps);
    CHECK(plan.kept == KeptBlocks::after(plan.kept.steps(), blocks));
    steps = plan.kept.steps();
  }
  CHECK(steps > 0);
  CHECK(steps < KeptBlocks::most_steps(blocks));

  // With so much less, whatever the steps of the ladder take; also where the way up comes to the last block alone.
  const Recipe last = tiny_recipe(
      {"train.batch=64", "data.max_tokens=1024", "offload.frozen=none", str("adapter.layers=[", blocks - 1, "]")});
  for (const Recipe* of : {&recipe, &last}) {
    const auto with = [&](int64_t memory, int64_t withheld) {
      const Machine machine{.device = at::kCUDA, .device_memory_bytes = memory, .withheld_bytes = withheld};
      return plan_memory(config, *of, {1, 1, 1, 1}, machine);
    };
    const MemoryPlan most = with(int64_t{1} << 40, 0);
    CHECK(most.kept == KeptBlocks::whole(of == &last ? 1 : blocks));
    const auto memory = static_cast<int64_t>(static_cast<double>(most.device_bytes()) / (1.0 - kKeepReserve)) + 1;
    CHECK(with(memory, 0).kept == most.kept);
    for (const int64_t withheld : {most.kept_bytes / 8, most.kept_bytes / 2, most.kept_bytes}) {
      const MemoryPlan less = with(memory, withheld);
      CHECK(less.kept.steps() < most.kept.steps());
      CHECK((less.device_bytes() <= most.device_bytes() - withheld || less.kept.steps() == 0));
      CHECK(less.unkept_bytes == most.unkept_bytes);
    }
  }
}

TEST_CASE("memory plan: auto moves no weights to the host for what it keeps") {
  // A stage of dense layers alone, which has no experts to move first.
  json object = kTinyV3;
  object.update(
      {{"hidden_size", 512}, {"intermediate_size", 4096}, {"num_hidden_layers", 20}, {"first_k_dense_replace", 16}});
  const Blueprint config = parse_blueprint(object, "config.json");
  const auto planned = [&](const char* keep, int64_t memory) {
    const Recipe recipe = tiny_recipe(
        {"train.batch=8", "data.max_tokens=128", "offload.frozen=auto", keep, "mesh.pp=2", "mesh.pp_layers=[16, 4]"});
    return plan_stages(config, recipe, {2, 1, 1, 1}, {.device = at::kCUDA, .device_memory_bytes = memory}).at(0);
  };
  const int64_t all = planned("train.keep=all", int64_t{1} << 40).device_bytes();
  int64_t dense_on_device = 0, keeps_some = 0;
  for (int64_t part = 1; part <= 128; ++part) {
    const int64_t memory = all * part / 100;
    const MemoryPlan nothing = planned("train.keep=none", memory), kept = planned("train.keep=auto", memory);
    INFO(memory << " bytes: " << to_string(kept.kept));
    CHECK(kept.weights.dense_on_host == nothing.weights.dense_on_host);
    dense_on_device += !nothing.weights.dense_on_host;
    keeps_some += kept.kept.steps() > 0 && kept.kept.steps() < KeptBlocks::most_steps(16);
  }
  CHECK(dense_on_device > 0);
  CHECK(dense_on_device < 128);
  CHECK(keeps_some > 0);
}
