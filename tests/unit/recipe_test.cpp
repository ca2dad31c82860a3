// Recipes: values, origins, overrides, the mistakes and their messages, and the way back through the resolved dump.
#include "tests/support/recipe_text.h"

#include <algorithm>

#include "tests/support/catch.h"
#include "tests/support/message_of.h"
#include "trainer/recipe/recipe_dump.h"

using namespace moetune;

namespace {

constexpr const char* kTargetNames =
    "attention, dense_mlp, shared_expert, experts, all_linear, q_a_proj, q_b_proj, q_proj, kv_a_proj_with_mqa, "
    "kv_b_proj, "
    "k_proj, v_proj, o_proj, gate_proj, up_proj, down_proj, experts.gate_proj, experts.up_proj, experts.down_proj, "
    "experts.gate_up_proj, experts.w1, experts.w3 or experts.w2";

}  // namespace

TEST_CASE("recipe: defaults") {
  const Recipe recipe = parse_recipe(kSmall, "r.yaml");
  CHECK(recipe.run.seed == 17);
  CHECK(recipe.run.device == DeviceChoice::kAuto);
  CHECK(recipe.model.base == BaseFormat::kNf4);
  CHECK(recipe.model.compute == ComputeType::kBf16);
  REQUIRE(recipe.adapter);
  CHECK(recipe.adapter->rank == 16);
  CHECK(recipe.adapter->alpha == 16.0);
  CHECK(recipe.adapter->targets == std::vector<std::string>{"attention"});
  CHECK_FALSE(recipe.data.eval);
  CHECK(recipe.train.steps == 5);
  CHECK_FALSE(recipe.train.epochs);
  CHECK_FALSE(recipe.train.slice_tokens);
  CHECK(recipe.train.keep.kind == KeepLayers::Kind::kAuto);
  CHECK_FALSE(recipe.mesh.dp);
  CHECK(recipe.checkpoint.keep_last == 2);
  CHECK(recipe.origin("train.steps") == "r.yaml:4");
  CHECK(recipe.origin("train.batch") == "default");
}

TEST_CASE("recipe: every section") {
  const Recipe recipe = parse_recipe(R"(
run: {dir: runs/v3-attention, seed: 18, device: cuda, threads: 4}
model:
  path: /models/DeepSeek-V3
  weights: random
  base: nf4_double
  compute: fp64
  cache: /nvme/packed
adapter:
  rank: 32
  alpha: 64
  dropout: 0.1
  rslora: true
  targets: [attention, experts.up_proj]
  ranks: {o_proj: 8, experts.up_proj: 4}
  layers: [0, 3-7, mtp]
  experts: top 8
  from: old
data:
  train: data/train.jsonl
  eval: data/heldout.jsonl
  cache: /fast/tokens
  max_tokens: 128
  packing: false
  shuffle: false
  special_tokens_in_content: reject
  train_on: all
  thoughts: keep
  add_bos: false
  chat_template_kwargs: {thinking: true, effort: high, budget: -3, warmth: 0.5, version: "1"}
  ignore_keys: [name, "a key"]
train:
  epochs: 2
  batch: 8
  slice_tokens: 256
  keep: 3
  clip: 0
  optimizer: {lr: 1e-3, lr_b_ratio: 16, betas: [0.8, 0.95], eps: 1.0e-6, weight_decay: 0.01}
  schedule: {kind: linear, warmup_steps: 20, min_lr_ratio: 0.1}
mesh: {pp: 3, pp_layers: [5, 1, 2], pp_groups: 6, dp: 2, ep: 8, tp: 1, expert_tp: 4, shard: node}
offload: {frozen: 1536MiB, activations: host}
exchange: {buffer_rows: 1000}
router: {train: lora, bias: update, bias_rate: 0.002, balance_loss: 0.01}
mtp: {loss_weight: 0.3}
checkpoint: {every_steps: 100, every_minutes: 30, keep_last: 3, keep_best: 2, async: false}
eval: {every_steps: 50, at_start: true, max_sequences: 9}
deterministic: true
)",
                                     "r.yaml");
  CHECK(recipe.run == RunRecipe{"runs/v3-attention", 18, DeviceChoice::kCuda, 4});
  CHECK(recipe.model == ModelRecipe{"/models/DeepSeek-V3", WeightOrigin::kRandom, BaseFormat::kNf4Double,
                                    ComputeType::kFp64, "/nvme/packed"});
  REQUIRE(recipe.adapter);
  CHECK(*recipe.adapter == AdapterRecipe{32,
                                         64.0,
                                         0.1,
                                         true,
                                         {"attention", "experts.up_proj"},
                                         {{"o_proj", 8}, {"experts.up_proj", 4}},
                                         {false, {{0, 0}, {3, 7}}, true},
                                         {ExpertChoice::Kind::kTop, {}, 8},
                                         "old"});
  CHECK(recipe.data == DataRecipe{DataFiles::of("data/train.jsonl"),
                                  DataFiles::of("data/heldout.jsonl"),
                                  0.0,
                                  "/fast/tokens",
                                  128,
                                  false,
                                  false,
                                  SpecialTokens::kReject,
                                  TrainOn::kAll,
                                  Thoughts::kKeep,
                                  AddBos::kFalse,
                                  {{"budget", int64_t{-3}},
                                   {"effort", std::string("high")},
                                   {"thinking", true},
                                   {"version", std::string("1")},
                                   {"warmth", 0.5}},
                                  {"name", "a key"}});
  TrainRecipe train;
  train.epochs = 2;
  train.batch = 8;
  train.slice_tokens = 256;
  train.keep = {KeepLayers::Kind::kCount, 3};
  train.clip = 0.0;
  train.optimizer = {1e-3, 16.0, {0.8, 0.95}, 1e-6, 0.01};
  train.schedule = {ScheduleKind::kLinear, 20, 0.1};
  CHECK(recipe.train == train);
  CHECK(recipe.mesh == MeshRecipe{3, {5, 1, 2}, 6, 2, 8, 1, 4, ShardScope::kNode});
  CHECK(recipe.offload == OffloadRecipe{{OffloadFrozen::Kind::kBytes, int64_t{1536} << 20}, OffloadTier::kHost});
  CHECK(recipe.exchange == ExchangeRecipe{1000});
  CHECK(recipe.router == RouterRecipe{RouterTraining::kLora, RouterBias::kUpdate, 0.002, 0.01, {}});
  CHECK(recipe.mtp == MtpRecipe{0.3});
  CHECK(recipe.checkpoint == CheckpointRecipe{100, 30.0, 3, 2, AsyncSave::kFalse});
  CHECK(recipe.eval == EvalRecipe{50, true, 9});
  CHECK(recipe.deterministic);
  CHECK(same_values(parse_recipe(dump_resolved(recipe), "dump.yaml"), recipe));
}

TEST_CASE("recipe: how many best checkpoints are kept was once a switch") {
  const std::vector<std::string> evaluated = {"data.eval=e.jsonl", "eval.every_steps=5"};
  const auto kept = [&](const std::string& value) {
    std::vector<std::string> overrides = evaluated;
    overrides.push_back("checkpoint.keep_best=" + value);
    return parse_recipe(kSmall, "r.yaml", overrides).checkpoint.keep_best;
  };
  CHECK(kept("true") == 1);
  CHECK(kept("false") == 0);
  CHECK(kept("3") == 3);
  CHECK(
      contains(mistakes_of(kSmall, {"checkpoint.keep_best=1"}), "give data.eval (or data.eval_split) and eval.every"));
  CHECK(contains(mistakes_of(kSmall, {"checkpoint.keep_best=-1"}), "whole number from 0 to 10000"));
  CHECK(contains(mistakes_of(kSmall, {"checkpoint.keep_last=true"}), "checkpoint.keep_last"));
}

TEST_CASE("recipe: each mistake has its message") {
  struct Case {
    std::string added;
    std::string told;
  };
  const std::vector<Case> cases = {
      {"adapter:\n  rnak: 3\n", "r.yaml:6:3: adapter.rnak: unknown key; did you mean 'rank'?"},
      {"adaptor: {rank: 3}\n", "r.yaml:5:1: adaptor: unknown key; did you mean 'adapter'?"},
      {"lr: 1\n", "r.yaml:5:1: lr: unknown key; did you mean 'train.optimizer.lr'?"},
      {"mtp: {colour: 1}\n", "r.yaml:5:7: mtp.colour: unknown key; allowed: loss_weight"},
      {"adapter: {rank: 010}\n",
       "r.yaml:5:17: adapter.rank: '010' is not allowed; allowed: whole number from 1 to 1024"},
      {"adapter: {rank: 0x10}\n",
       "r.yaml:5:17: adapter.rank: '0x10' is not allowed; allowed: whole number from 1 to 1024"},
      {"adapter: {rank: 1_000}\n",
       "r.yaml:5:17: adapter.rank: '1_000' is not allowed; allowed: whole number from 1 to 1024"},
      {"adapter: {rank: 0}\n", "r.yaml:5:17: adapter.rank: '0' is not allowed; allowed: whole number from 1 to 1024"},
      {"adapter: {rank: 1025}\n",
       "r.yaml:5:17: adapter.rank: '1025' is not allowed; allowed: whole number from 1 to 1024"},
      {"adapter: {rank: 8.0}\n",
       "r.yaml:5:17: adapter.rank: '8.0' is not allowed; allowed: whole number from 1 to 1024"},
      {"adapter: {rank: '8'}\n",
       "r.yaml:5:17: adapter.rank: '8' in quotes is text; allowed: whole number from 1 to 1024"},
      {"adapter: {rank: [8]}\n",
       "r.yaml:5:17: adapter.rank: a list is not allowed; allowed: whole number from 1 to 1024"},
      {"adapter: {alpha: 0}\n",
       "r.yaml:5:18: adapter.alpha: '0' is not allowed; allowed: number above 0 and at most 65536"},
      {"adapter: {dropout: 1.0}\n",
       "r.yaml:5:20: adapter.dropout: '1.0' is not allowed; allowed: number of at least 0 and below 1"},
      {"adapter: {rslora: yes}\n", "r.yaml:5:19: adapter.rslora: 'yes' is not allowed; allowed: true or false"},
      {"adapter: off\n", "r.yaml:5:10: adapter: 'off' is not allowed; allowed: none or map of keys"},
      {"mesh:\n", "r.yaml:6:1: mesh: null is not allowed; allowed: map of keys"},
      {"mesh: {pp: 0}\n", "r.yaml:5:12: mesh.pp: '0' is not allowed; allowed: whole number from 1 to 1024"},
      {"mesh: {pp_layers: [3, 0]}\n",
       "r.yaml:5:23: mesh.pp_layers: '0' is not allowed; allowed: list of whole numbers each from 1 to 10000"},
      {"mesh: {dp: 0}\n", "r.yaml:5:12: mesh.dp: '0' is not allowed; allowed: auto or whole number from 1 to 65536"},
      {"mesh: {shard: zero3}\n", "r.yaml:5:15: mesh.shard: 'zero3' is not allowed; allowed: none, node or all"},
      {"offload: {frozen: 40GB}\n",
       "r.yaml:5:19: offload.frozen: '40GB' is not allowed; allowed: auto, none, all or an amount such as 40GiB"},
      {"offload: {frozen: 99999999TiB}\n",
       "r.yaml:5:19: offload.frozen: '99999999TiB' is not allowed; allowed: auto, none, all or an amount such as "
       "40GiB"},
      {"mesh: {dp: null}\n",
       "r.yaml:5:12: mesh.dp: null is not allowed; allowed: auto or whole number from 1 to 65536"},
      {"router: {bias: thawed}\n", "r.yaml:5:16: router.bias: 'thawed' is not allowed; allowed: frozen or update"},
      {"adapter: {targets: attention}\n",
       std::string("r.yaml:5:20: adapter.targets: 'attention' is not allowed; allowed: list of names among ") +
           kTargetNames},
      {"adapter: {targets: []}\n",
       std::string("r.yaml:5:20: adapter.targets: a list is not allowed; allowed: list of names among ") +
           kTargetNames},
      {"adapter: {targets: [o_porj]}\n", "r.yaml:5:21: adapter.targets: unknown name 'o_porj'; did you mean 'o_proj'?"},
      {"adapter: {targets: [o_proj, o_proj]}\n", "r.yaml:5:29: adapter.targets: 'o_proj' is listed twice"},
      {"adapter: {ranks: {o_proj: 0}}\n",
       "r.yaml:5:27: adapter.ranks: o_proj: '0' is not allowed; allowed: whole number from 1 to 1024"},
      {"adapter: {ranks: {attention: 4}}\n",
       "r.yaml:5:30: adapter.ranks: unknown name 'attention'; allowed: q_a_proj, q_b_proj, q_proj, kv_a_proj_with_mqa, "
       "kv_b_proj, k_proj, v_proj, o_proj, gate_proj, up_proj, down_proj, experts.gate_proj, experts.up_proj, "
       "experts.down_proj, experts.gate_up_proj, experts.w1, experts.w3, experts.w2"},
      {"adapter: {ranks: {up_proj: 4}}\n",
       "r.yaml:5:18: adapter.ranks: up_proj has a rank but is not selected by adapter.targets"},
      {"adapter: none\n",
       "r.yaml:5:10: adapter: nf4 weights cannot be trained themselves (adapter: none); allowed then: bf16 or fp32, or "
       "a "
       "frozen part: name those that train in train.parts"},
      {"adapter: {from: ~/old}\n",
       "r.yaml:5:17: adapter.from: '~/old' would not be expanded: a recipe knows neither ~ nor variables; write the "
       "path in full"},
      {"adapter: {from: $HOME/old}\n",
       "r.yaml:5:17: adapter.from: '$HOME/old' would not be expanded: a recipe knows neither ~ nor variables; write "
       "the path in full"},
      {"eval: {every_steps: 5}\n",
       "r.yaml:5:21: eval.every_steps: there is nothing to evaluate on; give data.eval or data.eval_split"},
      {"eval: {at_start: true}\n",
       "r.yaml:5:18: eval.at_start: there is nothing to evaluate on; give data.eval or data.eval_split"},
      {"run: {dir: b}\n", "r.yaml:5:1: the key 'run' was already given at 1:1"},
  };
  for (const Case& c : cases) {
    INFO(c.added);
    CHECK(mistakes_of(kSmall + c.added) == c.told);
  }
}

TEST_CASE("recipe: mistakes in train") {
  const std::string head = "run: {dir: a}\nmodel: {path: m}\ndata: {train: t}\n";
  CHECK(mistakes_of(head) == "r.yaml: train.steps: missing; give train.steps or train.epochs");
  CHECK(mistakes_of(head + "train: {steps: 5, epochs: 1}\n") ==
        "r.yaml:4:16: train.steps: given together with train.epochs; give one of the two");
  CHECK(mistakes_of(head + "train: {steps: 5, epochs: null}\n").empty());
  CHECK(mistakes_of(head + "train: {steps: five}\n") ==
        "r.yaml:4:16: train.steps: 'five' is not allowed; allowed: null or whole number from 1 to 1000000000");
  CHECK(mistakes_of(head + "train: {steps: 5, batch: 0}\n") ==
        "r.yaml:4:26: train.batch: '0' is not allowed; allowed: whole number from 1 to 1048576");
  CHECK(mistakes_of(head + "train: {steps: 5, keep: some}\n") ==
        "r.yaml:4:25: train.keep: 'some' is not allowed; allowed: auto, none, attention, experts, all or whole number "
        "from 0 to 10000");
  CHECK(mistakes_of(head + "train: {steps: 5, optimizer: {lr: 11}}\n") ==
        "r.yaml:4:35: train.optimizer.lr: '11' is not allowed; allowed: number from 0 to 10");
  CHECK(mistakes_of(head + "train: {steps: 5, optimizer: {betas: [0.9, 1.0]}}\n") ==
        "r.yaml:4:44: train.optimizer.betas: '1.0' is not allowed; allowed: list of two numbers each of at least 0 and "
        "below 1");
  CHECK(mistakes_of(head + "train: {steps: 5, optimizer: {betas: [0.9]}}\n") ==
        "r.yaml:4:38: train.optimizer.betas: a list is not allowed; allowed: list of two numbers each of at least 0 "
        "and below 1");
  CHECK(mistakes_of(head + "train: {steps: 5, schedule: {warmup_steps: 6}}\n") ==
        "r.yaml:4:44: train.schedule.warmup_steps: 6 is more than the 5 steps of the run");
}

TEST_CASE("recipe: all mistakes are told at once, in the order of the file") {
  const std::string text =
      "run: {dri: x}\n"
      "model:\n"
      "  path: /m\n"
      "  base: nf5\n"
      "adapter: &a\n"
      "  rnak: 3\n"
      "  rank: 0\n"
      "  rank: 7\n"
      "data: {train: *a}\n"
      "train: {steps: 1_000}\n";
  CHECK(mistakes_of(text, {"mesh.ep=0", "nothing", "mesh.ep=1"}) ==
        "r.yaml:1:7: run.dri: unknown key; did you mean 'dir'?\n"
        "r.yaml:4:9: model.base: 'nf5' is not allowed; allowed: nf4, nf4_double, bf16 or fp32\n"
        "r.yaml:5:10: an anchor (&name) is not allowed in a recipe; write the value out where it is used\n"
        "r.yaml:6:3: adapter.rnak: unknown key; did you mean 'rank'?\n"
        "r.yaml:7:9: adapter.rank: '0' is not allowed; allowed: whole number from 1 to 1024\n"
        "r.yaml:8:3: the key 'rank' was already given at 7:3\n"
        "r.yaml:9:15: an alias (*name) is not allowed in a recipe; write the value out\n"
        "r.yaml:10:16: train.steps: '1_000' is not allowed; allowed: null or whole number from 1 to 1000000000\n"
        "r.yaml: run.dir: missing; allowed: path\n"
        "command line: 'nothing' is not of the form key.sub=value\n"
        "command line: mesh.ep: given twice\n"
        "command line: mesh.ep: '0' is not allowed; allowed: whole number from 1 to 65536");
  std::string many = kSmall;
  for (int i = 0; i < 60; ++i) many += "unknown_key_" + std::to_string(i) + ": 1\n";
  const std::string told = mistakes_of(many);
  CHECK(std::count(told.begin(), told.end(), '\n') == 50);
  CHECK(told.substr(told.rfind('\n') + 1) == "r.yaml: 10 more mistakes");
}

TEST_CASE("recipe: what is no map of sections") {
  CHECK(
      mistakes_of("") ==
      "r.yaml: run.dir: missing; allowed: path\n"
      "r.yaml: model.path: missing; allowed: path\n"
      "r.yaml: data.train: missing; allowed: path, {path, weight} or list of these (weight above 0 and at most 1000)\n"
      "r.yaml: train.steps: missing; give train.steps or train.epochs");
  CHECK(mistakes_of("", {"run.dir=a", "model.path=m", "data.train=t", "train.steps=1"}).empty());
  CHECK(mistakes_of("- a\n") == "r.yaml:1:1: a recipe is a map of sections such as 'run:', not a list");
  CHECK(mistakes_of("run: {dir: a\n") == "r.yaml:2:1: not YAML: end of map flow not found");
}

TEST_CASE("recipe: overrides are typed by the schema") {
  const Recipe recipe = parse_recipe(
      kSmall, "r.yaml",
      {"train.steps=", "train.epochs=3", "run.dir=runs/a: b", "adapter.rank=8", "adapter.targets=[experts, o_proj]",
       "adapter.ranks.experts.up_proj=4", "train.optimizer.betas=[0.5, 0.6]", "data.eval=010", "model.base=bf16",
       "train.keep=all", "exchange.buffer_rows=auto", "adapter.from=\"null\"", "data.packing=false"});
  CHECK_FALSE(recipe.train.steps);
  CHECK(recipe.train.epochs == 3);
  CHECK(recipe.run.dir == "runs/a: b");
  CHECK(recipe.adapter->rank == 8);
  CHECK(recipe.adapter->alpha == 8.0);
  CHECK(recipe.adapter->targets == std::vector<std::string>{"experts", "o_proj"});
  CHECK(recipe.adapter->ranks == std::map<std::string, int64_t>{{"experts.up_proj", 4}});
  CHECK(recipe.train.optimizer.betas == std::array<double, 2>{0.5, 0.6});
  CHECK(recipe.data.eval == DataFiles::of("010"));
  CHECK(recipe.model.base == BaseFormat::kBf16);
  CHECK(recipe.train.keep.kind == KeepLayers::Kind::kAll);
  CHECK(recipe.adapter->from == std::string("null"));
  CHECK_FALSE(recipe.data.packing);
  CHECK(recipe.origin("adapter.rank") == "command line");
  CHECK(recipe.origin("adapter.ranks") == "command line");
  CHECK(recipe.origin("train.steps") == "default");
  CHECK(recipe.origin("data.train") == "r.yaml:3");

  const Recipe whole = parse_recipe(kSmall, "r.yaml", {"adapter=none", "model={path: /n, base: fp32}"});
  CHECK_FALSE(whole.adapter);
  CHECK(whole.model.path == "/n");
  CHECK(whole.model.base == BaseFormat::kFp32);
  CHECK(parse_recipe(kSmall + "adapter: none\n", "r.yaml", {"adapter="}).adapter->rank == 16);
}

TEST_CASE("recipe: mistakes on the command line") {
  struct Case {
    std::string override_text;
    std::string told;
  };
  const std::vector<Case> cases = {
      {"steps", "command line: 'steps' is not of the form key.sub=value"},
      {"=3", "command line: '=3' is not of the form key.sub=value"},
      {"train..lr=3", "command line: 'train..lr=3' is not of the form key.sub=value"},
      {"train.batch=many", "command line: train.batch: 'many' is not allowed; allowed: whole number from 1 to 1048576"},
      {"train.batch=1_000",
       "command line: train.batch: '1_000' is not allowed; allowed: whole number from 1 to 1048576"},
      {"data.packing=no", "command line: data.packing: 'no' is not allowed; allowed: true or false"},
      {"train.bacth=3", "command line: train.bacth: unknown key; did you mean 'batch'?"},
      {"train.bacth=", "command line: train.bacth: unknown key; did you mean 'batch'?"},
      {"tarin.batch=3", "command line: tarin: unknown key; did you mean 'train'?"},
      {"train.steps.x=3", "command line: train.steps.x: train.steps is '5' and has no keys"},
      {"adapter.targets=[a, *b]",
       "command line: adapter.targets: '[a, *b]': an alias (*name) is not allowed in a recipe; write the value out"},
      {"adapter.targets=[o_porj]", "command line: adapter.targets: unknown name 'o_porj'; did you mean 'o_proj'?"},
      {"adapter={rnak: 3}", "command line: adapter.rnak: unknown key; did you mean 'rank'?"},
      {"run.dir=", "r.yaml: run.dir: missing; allowed: path"},
      {"train.epochs=1", "r.yaml:4:16: train.steps: given together with train.epochs; give one of the two"},
  };
  for (const Case& c : cases) {
    INFO(c.override_text);
    CHECK(mistakes_of(kSmall, {c.override_text}) == c.told);
  }
  CHECK(mistakes_of(kSmall, {"adapter=none", "model.base=bf16", "model.cache=c"}) ==
        "command line: model.cache: the weights themselves train (adapter: none), so there are no frozen ones to keep; "
        "take it out");
}

TEST_CASE("recipe: the resolved dump says where values came from, and loads again") {
  const Recipe recipe =
      parse_recipe(kSmall + "adapter: {rank: 8}\n", "r.yaml", {"train.batch=2", "data.eval=a #\"b\\c\" : d"});
  const std::string dump = dump_resolved(recipe);
  const auto has_line = [&](const std::string& line) { return dump.find("\n" + line + "\n") != std::string::npos; };
  CHECK(has_line("  dir: runs/a                                     # r.yaml:1"));
  CHECK(has_line("  steps: 5                                        # r.yaml:4"));
  CHECK(has_line("  epochs: null                                    # default"));
  CHECK(has_line("  batch: 2                                        # command line"));
  CHECK(has_line("    lr: 2.0e-4                                    # default"));
  CHECK(has_line("    eps: 1.0e-8                                   # default"));
  CHECK(has_line("  rank: 8                                         # r.yaml:5"));
  CHECK(has_line("  alpha: 8.0                                      # default: the rank"));
  const Recipe again = parse_recipe(dump, "runs/a/recipe.yaml");
  CHECK(same_values(again, recipe));
  CHECK(again.origin("run.dir") == "runs/a/recipe.yaml:3");
  CHECK(same_values(parse_recipe(dump_resolved(again), "x"), recipe));
}

TEST_CASE("recipe: text and numbers survive the dump") {
  for (const std::string text : {"null",
                                 "true",
                                 "-",
                                 "- a",
                                 "a: b",
                                 "a # b",
                                 " a ",
                                 "'a",
                                 "\"",
                                 "\\x41",
                                 "0x10",
                                 "1e5",
                                 "*a",
                                 "&a",
                                 "!t",
                                 "a\tb\n\x01",
                                 "[a]",
                                 "{a}",
                                 "%a",
                                 "@a",
                                 "`a",
                                 "|",
                                 "Gr\xc3\xb6\xc3\x9f"
                                 "e/\xe6\xa8\xa1",
                                 "yes",
                                 "a,b"}) {
    Recipe recipe = parse_recipe(kSmall, "r.yaml");
    recipe.data.eval = DataFiles::of(text);
    INFO(text);
    CHECK(same_values(parse_recipe(dump_resolved(recipe), "d"), recipe));
  }
  for (const double number : {0.1, 1.0 / 3.0, 2e-4, 5e-324, 1e-3, 9.999999999999999e-4, 7.0, 10.0}) {
    Recipe recipe = parse_recipe(kSmall, "r.yaml");
    recipe.train.optimizer.lr = number;
    recipe.train.clip = number * 1e5;
    INFO(number);
    CHECK(same_values(parse_recipe(dump_resolved(recipe), "d"), recipe));
  }
  const Recipe none = parse_recipe(kSmall, "r.yaml", {"adapter=none", "model.base=bf16", "train.keep=none"});
  CHECK(same_values(parse_recipe(dump_resolved(none), "d"), none));
}
