// What a recipe asks of a model that the model cannot do, refused by name.
#include "trainer/recipe/recipe_meaning.h"

#include "moe/families/family.h"
#include "parallel/base/error.h"
#include "tests/support/catch.h"
#include "tests/support/message_of.h"
#include "tests/support/planned_model.h"

using namespace moetune;
using nlohmann::json;

TEST_CASE("a router that no loss reaches does not train") {
  json object = kTinyV3;
  object["num_experts_per_tok"] = 1;
  const Blueprint one = parse_blueprint(object, "config.json"), two = parse_blueprint(kTinyV3, "config.json");
  require_router_gradient(tiny_recipe({"router.train=lora"}), two);
  require_router_gradient(tiny_recipe({}), one);
  require_router_gradient(tiny_recipe({"router.train=lora", "router.balance.kind=switch"}), one);
  object["norm_topk_prob"] = false;
  require_router_gradient(tiny_recipe({"router.train=full"}), parse_blueprint(object, "config.json"));
  CHECK(contains(message_of<UserError>([&] { require_router_gradient(tiny_recipe({"router.train=full"}), one); }),
                 "command line: router.train: full: the router of deepseek_v3 here chooses one expert"));
}

TEST_CASE("parts that a model cannot train are refused, all mistakes in one") {
  const auto said = [](const std::vector<std::string>& overrides, const json& change = json::object()) {
    json object = kTinyV3;
    for (const auto& [key, value] : change.items()) object[key] = value;
    return message_of<UserError>(
        [&] { require_trained_parts(tiny_recipe(overrides), parse_blueprint(object, "config.json")); });
  };
  const json tied = {{"tie_word_embeddings", true}}, no_dense = {{"first_k_dense_replace", 0}};
  CHECK(
      said({"adapter=none", "train.parts=[dense_mlp, norms]"}, no_dense) ==
      "command line: train.parts: dense_mlp is no part of this deepseek_v3; it has experts, attention, shared_expert, "
      "router, norms, embedding, head");
  CHECK(said({"adapter=none", "train.parts=[head]"}, tied) ==
        "command line: train.parts: head without embedding, which are one tensor in this model "
        "(tie_word_embeddings); name both or neither");
  CHECK(contains(said({"adapter=none", "train.parts=[norms, embedding]"}, tied), "embedding without head"));
  CHECK(said({"adapter.targets=[o_proj, q_b_proj, experts]", "train.parts=[attention]"}) ==
        "command line: train.parts: attention would train itself, and adapter.targets (command line) gives o_proj, "
        "q_b_proj of it adapters; take the part or the targets out");
  CHECK(said({"adapter=none", "train.parts=[experts]", "train.experts=[0, 6-9, 12]"}) ==
        "command line: train.experts: 6-9, 12 is more than there is; a layer of the model has experts 0 to 7");
  CHECK(said({"adapter=none", "train.experts=top 9", "model.base=bf16"}) ==
        "command line: train.experts: top 9 is more than there is; a layer of the model has experts 0 to 7");
  CHECK(contains(said({"adapter.targets=[experts]", "train.parts=[experts]", "train.experts=top 2"}),
                 "train.parts: experts would train itself, and adapter.targets (command line) gives"));
  // up_proj is that of dense MLPs and of shared experts.
  CHECK(contains(said({"adapter.targets=[up_proj]", "train.parts=[shared_expert]"}), "gives up_proj of it adapters"));
  const std::vector<std::string> maps = {"adapter=none", "train.parts=[experts, attention, dense_mlp, shared_expert]",
                                         "model.cache=/tmp/c"};
  CHECK(said(maps) ==
        "default: model.base: nf4: no linear map of this model is frozen with train.parts: experts, attention, "
        "dense_mlp, shared_expert; allowed then: bf16 or fp32\n"
        "command line: model.cache: no linear map of this model is frozen with train.parts: experts, attention, "
        "dense_mlp, shared_expert, so that there is nothing to keep; take it out");
  for (const std::vector<std::string>& fine :
       std::vector<std::vector<std::string>>{{"adapter=none", "train.parts=[norms]"},
                                             {"train.parts=[experts, head]"},
                                             // With some experts frozen there is something to hold in 4 bits.
                                             {"adapter=none", "train.experts=[0-6]", "model.cache=/tmp/c"},
                                             {}}) {
    require_trained_parts(tiny_recipe(fine), parse_blueprint(kTinyV3, "config.json"));
  }
  require_trained_parts(tiny_recipe({"adapter=none", "train.parts=[embedding, head]"}), parse_blueprint(
                                                                                            [&] {
                                                                                              json object = kTinyV3;
                                                                                              object.update(tied);
                                                                                              return object;
                                                                                            }(),
                                                                                            "config.json"));
}
