// `moetune validate`: places of mistakes in what an adapter reaches, and bytes on several hosts.
#include "trainer/plan/validate.h"

#include "parallel/base/error.h"
#include "parallel/base/files.h"
#include "tests/support/catch.h"
#include "tests/support/deepseek_v3_config.h"
#include "tests/support/message_of.h"
#include "tests/support/temporary_folder.h"
#include "trainer/recipe/recipe_load.h"

using namespace moetune;

namespace {

struct Place {
  Place() {
    write_text_atomically(folder / "config.json", kDeepseekV3Config);
    write_text_atomically(folder / "train.jsonl", R"({"input_ids": [1, 2], "labels": [1, 2]})"
                                                  "\n");
  }
  Recipe recipe(const std::string& adapter, const std::vector<std::string>& overrides = {}) const {
    return parse_recipe(
        str("run: {dir: r, device: cuda}\nmodel: {path: ", folder.path(),
            ", weights: random}\ndata: {train: ", folder / "train.jsonl", "}\ntrain: {steps: 5}\n", adapter),
        "r.yaml", overrides);
  }
  TemporaryFolder folder;
};

}  // namespace

TEST_CASE("validate: a mistake of what an adapter reaches has the place of its own key", "[validate]") {
  const Place place;
  const auto mistake_of = [&](const std::string& adapter) {
    return message_of<UserError>([&] { validate(place.recipe(adapter), "r.yaml", 1); });
  };
  CHECK(mistake_of("adapter:\n  targets: [attention]\n  layers: [70]\n").starts_with("r.yaml:7: adapter.layers: "));
  CHECK(mistake_of("adapter:\n  targets: [experts]\n\n  experts: [300]\n").starts_with("r.yaml:8: adapter.experts: "));
  CHECK(mistake_of("adapter:\n  rank: 4\n  targets: [q_proj]\n").starts_with("r.yaml:7: adapter.targets: "));
}

// 16 GPUs are two hosts: sharded within a node dense maps are in 8 parts, over all in 16.
TEST_CASE("validate: hosts have eight ranks", "[validate]") {
  const Place place;
  const auto dense_of = [&](const char* shard, int64_t ranks) {
    const Recipe recipe = place.recipe("", {str("mesh.shard=", shard)});
    const std::string text = validate(recipe, "r.yaml", ranks), name = "frozen dense maps";
    const size_t begin = text.find(name);
    return text.substr(begin, text.find('\n', begin) - begin);
  };
  CHECK(contains(dense_of("node", 16), ", 1/8 of each"));
  CHECK(contains(dense_of("all", 16), ", 1/16 of each"));
  CHECK(contains(dense_of("node", 4), ", 1/4 of each"));
}
