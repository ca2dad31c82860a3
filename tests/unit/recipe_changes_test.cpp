// What --resume makes of every key of a recipe.
#include "trainer/recipe/recipe_changes.h"

#include <map>

#include "tests/support/catch.h"
#include "trainer/recipe/recipe_load.h"

using namespace moetune;

namespace {

const std::string kBase =
    "run: {dir: a}\nmodel: {path: m}\nadapter: {rank: 8}\ndata: {train: t.jsonl, eval: e.jsonl}\ntrain: {steps: 9}\n";

std::vector<RecipeChange> changes(const std::vector<std::string>& overrides) {
  return recipe_changes(parse_recipe(kBase, "then"), parse_recipe(kBase, "now", overrides));
}

}  // namespace

TEST_CASE("every key of the schema says what a resumed run makes of another value") {
  const auto keys = keys_on_resume();
  CHECK(keys.size() > 50);
  for (const auto& [key, on_resume] : keys) {
    INFO(key << ": give it .on_resume in trainer/recipe/recipe_schema.h");
    CHECK(on_resume != OnResume::kUndecided);
  }
}

TEST_CASE("what a resumed run must keep, and what it may change") {
  struct Case {
    const char* override;
    const char *key, *then, *now;
    OnResume on_resume;
  };
  const OnResume kSame = OnResume::kSame, kContents = OnResume::kContents, kFree = OnResume::kFree;
  for (const Case& test : std::vector<Case>{
           {"adapter.alpha=16", "adapter.alpha", "8.0", "16.0", kSame},
           {"adapter.rslora=true", "adapter.rslora", "false", "true", kSame},
           {"adapter.dropout=0.5", "adapter.dropout", "0.0", "0.5", kSame},
           {"adapter.targets=[experts]", "adapter.targets", "[attention]", "[experts]", kSame},
           {"adapter.from=x", "adapter.from", "null", "x", kSame},
           {"adapter.ranks={q_proj: 4}", "adapter.ranks", "{}", "{q_proj: 4}", kSame},
           {"adapter.layers=[0, 2-4]", "adapter.layers", "all", "[0, 2-4]", kSame},
           {"adapter.experts=top 4", "adapter.experts", "all", "top 4", kSame},
           {"train.parts=[norms, head]", "train.parts", "auto", "[norms, head]", kSame},
           {"router.train=lora", "router.train", "none", "lora", kSame},
           {"model.weights=random", "model.weights", "pretrained", "random", kSame},
           {"model.base=bf16", "model.base", "nf4", "bf16", kSame},
           {"model.compute=fp32", "model.compute", "bf16", "fp32", kSame},
           {"model.path=other", "model.path", "m", "other", kContents},
           {"data.train=u.jsonl", "data.train", "t.jsonl", "u.jsonl", kContents},
           {"data.eval=f.jsonl", "data.eval", "e.jsonl", "f.jsonl", kFree},
           {"data.packing=false", "data.packing", "true", "false", kSame},
           {"data.shuffle=false", "data.shuffle", "true", "false", kSame},
           {"data.max_tokens=64", "data.max_tokens", "4096", "64", kSame},
           {"data.train_on=all", "data.train_on", "assistant", "all", kSame},
           {"data.special_tokens_in_content=allow", "data.special_tokens_in_content", "as_text", "allow", kSame},
           {"run.seed=18", "run.seed", "17", "18", kSame},
           {"run.dir=b", "run.dir", "a", "b", kFree},
           {"train.batch=2", "train.batch", "64", "2", kSame},
           {"train.steps=19", "train.steps", "9", "19", kFree},
           {"train.clip=2", "train.clip", "1.0", "2.0", kFree},
           {"train.optimizer.lr=0.5", "train.optimizer.lr", "2.0e-4", "0.5", kFree},
           {"train.optimizer.betas=[0.5, 0.9]", "train.optimizer.betas", "[0.9, 0.999]", "[0.5, 0.9]", kSame},
           {"train.schedule.kind=linear", "train.schedule.kind", "cosine", "linear", kFree},
           {"router.bias=update", "router.bias", "frozen", "update", kSame},
           {"router.bias_rate=0.5", "router.bias_rate", "0.001", "0.5", kSame},
           {"router.balance_loss=0.5", "router.balance_loss", "0.0", "0.5", kSame},
           {"mtp.loss_weight=0.5", "mtp.loss_weight", "0.0", "0.5", kSame},
           {"mesh.ep=4", "mesh.ep", "1", "4", kFree},
           {"checkpoint.keep_last=4", "checkpoint.keep_last", "2", "4", kFree},
           {"eval.every_steps=4", "eval.every_steps", "0", "4", kFree},
           {"offload.activations=host", "offload.activations", "none", "host", kFree},
           {"deterministic=true", "deterministic", "false", "true", kFree},
       }) {
    INFO(test.override);
    const std::vector<RecipeChange> found = changes({test.override});
    REQUIRE(found.size() == 1);
    CHECK(found[0].key == test.key);
    CHECK(found[0].then == test.then);
    CHECK(found[0].now == test.now);
    CHECK((found[0].on_resume == test.on_resume));
    CHECK(found[0].refused() == (test.on_resume == kSame));
  }
}

TEST_CASE("values are compared, not how they are written") {
  CHECK(changes({}).empty());
  CHECK(changes({"train.optimizer.lr=2e-4", "adapter.alpha=8", "data.packing=true"}).empty());
  CHECK(changes({"adapter.targets=[o_proj, v_proj, k_proj, kv_b_proj, kv_a_proj_with_mqa, q_proj, q_b_proj, q_a_proj]"})
            .empty());
  CHECK(changes({"adapter.targets=[o_proj, kv_b_proj]"}).size() == 1);
  const auto narrowed = [](const std::string& then, const std::string& now) {
    return recipe_changes(parse_recipe(kBase, "then", {then}), parse_recipe(kBase, "now", {now}));
  };
  CHECK(narrowed("adapter.layers=[2-4, 0, mtp]", "adapter.layers=[mtp, 0, 2, 3, 4]").empty());
  CHECK(narrowed("adapter.layers=[2-4, mtp]", "adapter.layers=[2-4]").size() == 1);
  CHECK(narrowed("adapter.experts=[2-4, 0]", "adapter.experts=[0, 2, 3-4]").empty());
  CHECK(narrowed("adapter.experts=[2-4]", "adapter.experts=[2, 4]").size() == 1);
  CHECK(changes({"adapter.alpha=16", "adapter.rank=16"}).size() == 2);
  // Keys of a section that one of the two lacks are said of the section.
  const std::vector<RecipeChange> section = changes({"adapter=none", "model.base=bf16"});
  REQUIRE(section.size() == 2);
  CHECK(section[1].key == "adapter");
  CHECK(section[1].now == "none");
  CHECK(section[1].refused());
}
