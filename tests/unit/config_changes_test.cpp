// What of a model's config.json a resumed run must find again.
#include "trainer/state/config_changes.h"

#include <nlohmann/json.hpp>

#include "parallel/base/error.h"
#include "tests/support/catch.h"
#include "tests/support/deepseek_v3_config.h"
#include "tests/support/message_of.h"

using namespace moetune;
using nlohmann::json;

namespace {

std::vector<ConfigChange> changes(const json& patch) {
  json now = json::parse(kDeepseekV3Config);
  now.merge_patch(patch);
  return config_changes(kDeepseekV3Config, now.dump(), "m/config.json");
}

}  // namespace

TEST_CASE("a config.json that computes something else is told key by key") {
  struct Case {
    json patch;
    const char *key, *then, *now;
  };
  for (const Case& test : std::vector<Case>{
           {{{"num_experts_per_tok", 4}}, "num_experts_per_tok", "8", "4"},
           {{{"routed_scaling_factor", 1.0}}, "routed_scaling_factor", "2.5", "1.0"},
           {{{"norm_topk_prob", false}}, "norm_topk_prob", "true", "false"},
           {{{"rope_scaling", {{"factor", 20}}}}, "rope_scaling.factor", "40", "20"},
       }) {
    INFO(test.key);
    const std::vector<ConfigChange> found = changes(test.patch);
    REQUIRE(found.size() == 1);
    CHECK(found[0].key == test.key);
    CHECK(found[0].then == test.then);
    CHECK(found[0].now == test.now);
  }
}

TEST_CASE("a config.json that means the same is no change") {
  CHECK(changes(json::object()).empty());
  CHECK(changes({{"transformers_version", "9.9"}, {"_name_or_path", "elsewhere"}, {"use_cache", false}}).empty());
  CHECK(changes({{"new_key_of_nobody", 3}}).empty());
  CHECK(contains(message_of<UserError>([] { config_changes(kDeepseekV3Config, "[]", "m/config.json"); }),
                 "m/config.json: is not a JSON object"));
}
