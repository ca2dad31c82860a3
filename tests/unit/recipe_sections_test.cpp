// Sections of recipes with rules of their own: data files, balance losses, targets, layers and experts, parts that
// train.
#include <unistd.h>

#include <filesystem>
#include <fstream>

#include "tests/support/catch.h"
#include "tests/support/message_of.h"
#include "tests/support/recipe_text.h"
#include "trainer/recipe/recipe_dump.h"
#include "trainer/recipe/recipe_meaning.h"

using namespace moetune;

TEST_CASE("recipe: data files") {
  const std::string head = "run: {dir: a}\nmodel: {path: m}\ntrain: {epochs: 1}\n";
  struct Case {
    std::string data;
    DataFiles files;
    std::string dumped;
  };
  const std::vector<Case> cases = {
      {"train: a.jsonl", DataFiles::of("a.jsonl"), "a.jsonl"},
      {"train: [a.jsonl]", DataFiles::of("a.jsonl"), "a.jsonl"},
      {"train: {path: a.jsonl, weight: 2.5}", {{{"a.jsonl", 2.5}}}, "{path: a.jsonl, weight: 2.5}"},
      {"train: [\"*.jsonl\", {path: b/, weight: 3}, {path: c}]",
       {{{"*.jsonl"}, {"b/", 3.0}, {"c"}}},
       "[\"*.jsonl\", {path: b/, weight: 3.0}, c]"},
  };
  for (const Case& c : cases) {
    INFO(c.data);
    const Recipe recipe = parse_recipe(head + "data: {" + c.data + "}\n", "r.yaml");
    CHECK(recipe.data.train == c.files);
    const std::string dump = dump_resolved(recipe);
    CHECK(dump.find("  train: " + c.dumped + " ") != std::string::npos);
    CHECK(same_values(parse_recipe(dump, "d"), recipe));
  }
  const Recipe listed = parse_recipe(head + "data:\n  train:\n    - a\n    - {path: b}\n", "r.yaml");
  CHECK(listed.origin("data.train[1]") == "r.yaml:7");
  CHECK(parse_recipe(head, "r.yaml", {"data.train=[a, {path: b, weight: 0.5}]"}).data.train ==
        DataFiles{{{"a"}, {"b", 0.5}}});

  const std::string allowed = "; allowed: path, {path, weight} or list of these (weight above 0 and at most 1000)";
  const std::vector<std::pair<std::string, std::string>> mistakes = {
      {"train: []", "r.yaml:4:15: data.train: a list is not allowed" + allowed},
      {"train: [a, [b]]", "r.yaml:4:19: data.train: a list is not allowed" + allowed},
      {"train: [a, {weight: 2}]", "r.yaml:4:19: data.train: an entry without 'path'" + allowed},
      {"train: [{path: a, weight: 0}]",
       "r.yaml:4:34: data.train: weight: '0' is not allowed; allowed: number above 0 and at most 1000"},
      {"train: [{path: a, wieght: 2}]", "r.yaml:4:34: data.train: unknown key 'wieght'; did you mean 'weight'?"},
      {"train: [{path: [a]}]", "r.yaml:4:23: data.train: path: a list is not allowed; allowed: path"},
      {"train: [a, ~/b]",
       "r.yaml:4:19: data.train: '~/b' would not be expanded: a recipe knows neither ~ nor variables; write the path "
       "in full"},
      {"train: a, eval: [{path: b, weight: 2}]",
       "r.yaml:4:43: data.eval: held-out data has no weight: each document counts once"},
      {"train: a, eval: b, eval_split: 0.1",
       "r.yaml:4:39: data.eval_split: given together with data.eval; give one of the two"},
      {"train: a, eval_split: 1.0",
       "r.yaml:4:30: data.eval_split: '1.0' is not allowed; allowed: number of at least 0 and below 1"},
  };
  for (const auto& [data, told] : mistakes) {
    INFO(data);
    CHECK(mistakes_of(head + "data: {" + data + "}\n") == told);
  }
  CHECK(mistakes_of(head + "data: {train: a, eval_split: 0.1}\neval: {every_steps: 5, at_start: true}\n").empty());
}

TEST_CASE("recipe: the balance loss") {
  const std::string head = "run: {dir: r}\nmodel: {path: m}\ndata: {train: t}\ntrain: {steps: 5}\n";
  Blueprint v3;
  v3.model_type = "deepseek_v3";
  v3.router.correction_bias = true;
  const auto spec = [&](const std::string& router) {
    return balance_spec(parse_recipe(head + "router: {" + router + "}\n", "r.yaml"), v3);
  };
  CHECK(!spec("bias: update").is_on());
  CHECK(spec("balance_loss: 0.3") == BalanceSpec{BalanceKind::kSequence, 0.3});
  CHECK(spec("balance: {kind: auto}") == BalanceSpec{BalanceKind::kSequence, 1e-4});
  CHECK(spec("balance: {kind: switch}") == BalanceSpec{BalanceKind::kSwitch, 0.01});
  CHECK(spec("balance: {kind: pooled, weight: 0.2}") == BalanceSpec{BalanceKind::kPooled, 0.2});
  CHECK(spec("balance: {kind: switch, weight: auto}") == BalanceSpec{BalanceKind::kSwitch, 0.01});
  CHECK(contains(message_of<UserError>([&] { spec("balance: {kind: deepseek_v2}"); }),
                 "r.yaml:5: router.balance.kind is deepseek_v2, whose losses are of softmax scores"));
  const std::vector<std::pair<std::string, std::string>> mistakes = {
      {"balance_loss: 0.1, balance: {kind: switch}",
       "r.yaml:5:24: router.balance_loss: given together with router.balance; give one of the two"},
      {"balance: {weight: 0.1}",
       "r.yaml:5:28: router.balance.weight: of no loss: router.balance.kind is none; name a kind (auto is the "
       "family's own), or take the weight out"},
      {"balance: {kind: shazeer}",
       "r.yaml:5:26: router.balance.kind: 'shazeer' is not allowed; allowed: auto, none, sequence, switch, pooled or "
       "deepseek_v2"},
      {"balance: {kind: switch, weight: 0}",
       "r.yaml:5:42: router.balance.weight: '0' is not allowed; allowed: auto or number above 0 and at most 100"}};
  for (const auto& [router, told] : mistakes) CHECK(mistakes_of(head + "router: {" + router + "}\n") == told);

  const Recipe moves = parse_recipe(head + "router: {bias: update}\n", "r.yaml");
  require_correction_bias(moves, v3);
  v3.router.correction_bias = false;
  CHECK(contains(message_of<UserError>([&] { require_correction_bias(moves, v3); }),
                 "r.yaml:5: router.bias: update moves a correction bias"));
}

TEST_CASE("recipe: files") {
  try {
    load_recipe("/nowhere/r.yaml");
    FAIL("a missing file was accepted");
  } catch (const UserError& error) {
    CHECK(std::string(error.what()) == "/nowhere/r.yaml: cannot be read; a recipe is a YAML file on this machine");
  }
  const std::string path =
      std::filesystem::temp_directory_path() / ("moetune_recipe_test_" + std::to_string(getpid()) + ".yaml");
  std::ofstream(path) << kSmall;
  const Recipe recipe = load_recipe(path, {"train.steps=7"});
  std::filesystem::remove(path);
  CHECK(recipe.train.steps == 7);
  CHECK(recipe.origin("model.path") == path + ":2");
}

TEST_CASE("recipe: targets") {
  CHECK(target_leaves("shared_expert") == std::vector<std::string>{"gate_proj", "up_proj", "down_proj"});
  CHECK(target_leaves("experts") == std::vector<std::string>{"experts.gate_proj", "experts.up_proj",
                                                             "experts.down_proj", "experts.gate_up_proj", "experts.w1",
                                                             "experts.w3", "experts.w2"});
  CHECK(target_leaves("q_a_proj") == std::vector<std::string>{"q_a_proj"});
  CHECK(target_leaves("all_linear").size() == 18);
  CHECK(target_leaves("embed_tokens").empty());
}

TEST_CASE("recipe: layers and experts") {
  const auto adapter = [](const std::string& text) { return *parse_recipe(kSmall + text, "r.yaml").adapter; };
  CHECK(adapter("").layers == LayerChoice{});
  CHECK(adapter("adapter: {layers: all, experts: all}\n") == adapter(""));
  CHECK(adapter("adapter: {layers: 10-20}\n").layers == LayerChoice{false, {{10, 20}}, false});
  CHECK(adapter("adapter: {layers: 4}\n").layers == LayerChoice{false, {{4, 4}}, false});
  CHECK(adapter("adapter: {layers: mtp}\n").layers == LayerChoice{false, {}, true});
  using Kind = ExpertChoice::Kind;
  CHECK(adapter("adapter: {experts: [0, 2-3]}\n").experts == ExpertChoice{Kind::kListed, {{0, 0}, {2, 3}}, 0});
  CHECK(adapter("adapter: {experts: top 3}\n").experts == ExpertChoice{Kind::kTop, {}, 3});
  for (const std::string text : {"adapter: {layers: [0, 2-3, mtp], experts: [1, 4-6]}\n", "adapter: {layers: mtp}\n"}) {
    const Recipe recipe = parse_recipe(kSmall + text, "r.yaml");
    CHECK(same_values(parse_recipe(dump_resolved(recipe), "dump.yaml"), recipe));
  }
  CHECK(parse_recipe(kSmall, "r.yaml", {"adapter.layers=[1, 3-4]"}).adapter->layers ==
        LayerChoice{false, {{1, 1}, {3, 4}}, false});
  const std::string layers = "; allowed: all, or numbers and ranges N-M, or mtp from 0 to 65535",
                    experts = "; allowed: all, numbers and ranges N-M, or top N from 0 to 65535";
  for (const std::string item : {"-1", "3-2", "3-", "x", "65536", "'3'", "1.5", "[1]"}) {
    INFO(item);
    const std::string shown = item == "[1]" ? "a list" : item == "'3'" ? item : "'" + item + "'";
    CHECK(mistakes_of(kSmall + "adapter: {layers: [" + item + "]}\n") ==
          "r.yaml:5:20: adapter.layers: " + shown + " is not allowed" + layers);
  }
  CHECK(mistakes_of(kSmall + "adapter: {layers: [1-4, 3]}\n") == "r.yaml:5:25: adapter.layers: '3' is listed twice");
  CHECK(mistakes_of(kSmall + "adapter: {layers: []}\n") ==
        "r.yaml:5:19: adapter.layers: a list is not allowed" + layers);
  for (const std::string item : {"top 0", "top", "top -2", "top 2.5", "mtp", "some"}) {
    INFO(item);
    CHECK(mistakes_of(kSmall + "adapter: {experts: " + item + "}\n") ==
          "r.yaml:5:20: adapter.experts: '" + item + "' is not allowed" + experts);
  }
}

TEST_CASE("recipe: experts whose weights train") {
  const auto with = [](const std::string& train, const std::string& adapter = "none") {
    return "run: {dir: a}\nmodel: {path: m}\ndata: {train: t}\nadapter: " + adapter +
           "\ntrain: {steps: 1, experts: " + train + "}\n";
  };
  using Kind = ExpertChoice::Kind;
  const auto train = [&](const std::string& text) { return parse_recipe(with(text), "r.yaml").train; };
  CHECK(train("top 3").experts == ExpertChoice{Kind::kTop, {}, 3});
  CHECK(train("[0, 2-3], parts: [experts]").experts == ExpertChoice{Kind::kListed, {{0, 0}, {2, 3}}, 0});
  const Recipe recipe = parse_recipe(with("[0, 2-3]"), "r.yaml");
  CHECK(same_values(parse_recipe(dump_resolved(recipe), "dump.yaml"), recipe));
  CHECK(to_string(trained_parts(parse_recipe(with("[0, 2-3], parts: [router, experts]"), "r.yaml"))) ==
        "experts (0, 2-3), router");
  CHECK(to_string(trained_parts(recipe)) == "all parts (experts: 0, 2-3)");
  CHECK(mistakes_of(with("top 0")) ==
        "r.yaml:5:28: train.experts: 'top 0' is not allowed; allowed: all, numbers and ranges N-M, or top N from 0 to "
        "65535");
  CHECK(mistakes_of(with("top 2, parts: [norms]")) ==
        "r.yaml:5:28: train.experts: top 2 of experts whose weights do not train; name the part experts in "
        "train.parts, or take it out (adapter.experts is for adapters)");
  CHECK(mistakes_of(with("[1]", "{rank: 4}")) ==
        "r.yaml:5:28: train.experts: 1 of experts whose weights do not train (train.parts: auto beside adapters trains "
        "none); name the part experts in train.parts, or take it out (adapter.experts is for adapters)");
}

TEST_CASE("recipe: routers beside weights that train themselves") {
  CHECK(mistakes_of(kSmall + "adapter: none\nrouter: {train: full}\n", {"model.base=bf16"}) ==
        "r.yaml:6:17: router.train: stands beside adapters; with adapter: none all parts train, or those that "
        "train.parts "
        "names: take it out");
  CHECK(parse_recipe(kSmall + "router: {train: full}\n", "r.yaml").router.train == RouterTraining::kFull);
}

TEST_CASE("recipe: parts that train themselves") {
  const auto with = [](const std::string& parts, const std::string& rest = "") {
    return "run: {dir: a}\nmodel: {path: m}\ndata: {train: t}\ntrain: {steps: 1, parts: " + parts + "}\n" + rest;
  };
  const std::string names = "experts, attention, dense_mlp, shared_expert, router, norms, embedding or head";
  CHECK(mistakes_of(with("[]")) ==
        "r.yaml:4:26: train.parts: a list is not allowed; allowed: auto or list of names among " + names);
  CHECK(mistakes_of(with("norms")) ==
        "r.yaml:4:26: train.parts: 'norms' is not allowed; allowed: auto or list of names among " + names);
  CHECK(mistakes_of(with("[norm]")) == "r.yaml:4:27: train.parts: unknown name 'norm'; did you mean 'norms'?");
  CHECK(mistakes_of(with("[head, norms, head]")) == "r.yaml:4:40: train.parts: 'head' is listed twice");
  CHECK(mistakes_of(with("[norms, router]", "router: {train: lora}\n")) ==
        "r.yaml:5:17: router.train: routers train by lora here and by train.parts too; give one of the two");
  const auto parts_of_recipe = [&](const std::string& text, const std::vector<std::string>& overrides = {}) {
    return trained_parts(parse_recipe(text, "r.yaml", overrides));
  };
  // Frozen maps may be held in 4 bits; which maps are, the model says.
  CHECK(parts_of_recipe(with("[norms, experts]", "adapter: none\n")) ==
        TrainedParts{ModelPart::kExperts, ModelPart::kNorms});
  CHECK(parts_of_recipe(with("[norms]"), {"router.train=full"}) == TrainedParts{ModelPart::kRouter, ModelPart::kNorms});
  CHECK(parts_of_recipe(with("auto")) == TrainedParts());
  CHECK(parts_of_recipe(with("auto", "adapter: none\n"), {"model.base=bf16"}) == TrainedParts::all());
}
