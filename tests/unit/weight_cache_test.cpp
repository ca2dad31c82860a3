// Which cache a run takes: equal sources and format, an equal key, and another for whatever may change a packed byte.
#include "tests/support/catch.h"

#include <fstream>
#include <set>

#include "lora/frozen_weight.h"
#include "tests/support/message_of.h"
#include "tests/support/tiny_run.h"
#include "trainer/exports/inspect.h"
#include "trainer/recipe/recipe_load.h"
#include "trainer/state/weight_cache.h"

using namespace moetune;
namespace fs = std::filesystem;

namespace {

struct Keyed {
  explicit Keyed(const TinyRun& run, const std::vector<std::string>& overrides = {})
      : recipe(load_recipe((run.checkpoint() / "recipe.yaml").string(), overrides)),
        config(load_blueprint(run.model())) {}
  std::string key() const { return cache_key(recipe, config, *source()); }
  std::unique_ptr<WeightSource> source() const {
    return recipe.model.weights == WeightOrigin::kRandom
               ? make_random_weights(config, static_cast<uint64_t>(recipe.run.seed), at::kCPU)
               : open_pretrained(recipe.model.path);
  }
  Recipe recipe;
  Blueprint config;
};

}  // namespace

TEST_CASE("the key follows sources and format, not what a run does with them", "[weight_cache]") {
  const TinyRun run;
  const std::string key = Keyed(run).key();
  CHECK(key.size() == 16);
  CHECK(Keyed(run, {"model.compute=fp32", "adapter.rank=3", "train.batch=4", "mesh.ep=1", "run.seed=5",
                    "mtp.loss_weight=0.3"})
            .key() == key);
  // A copy in another folder, with the time of its file.
  const fs::path file = run.model() / "model.safetensors", elsewhere = run.to("copy");
  const auto time = fs::last_write_time(file);
  fs::copy(run.model(), elsewhere);
  fs::last_write_time(elsewhere / "model.safetensors", time);
  CHECK(Keyed(run, {"model.path=" + elsewhere.string()}).key() == key);

  std::set<std::string> others = {key};
  CHECK(others.insert(Keyed(run, {"model.base=nf4_double"}).key()).second);
  CHECK(others.insert(Keyed(run, {"model.base=bf16"}).key()).second);
  CHECK(others.insert(Keyed(run, {"model.weights=random"}).key()).second);
  CHECK(others.insert(Keyed(run, {"model.weights=random", "run.seed=5"}).key()).second);
  fs::last_write_time(file, time + std::chrono::nanoseconds(1000));
  CHECK(others.insert(Keyed(run).key()).second);
  fs::last_write_time(file, time);
  CHECK(Keyed(run).key() == key);
  // Another type of the same tensors, with the time and the size of the old file: its header differs.
  auto weights = run.weights;
  at::Tensor& norm = weights.at("model.norm.weight");
  norm = norm.to(at::kInt);
  write_tensors(file.string(), {weights.begin(), weights.end()}, {});
  fs::last_write_time(file, time);
  CHECK(others.insert(Keyed(run).key()).second);
  // Of config.json what makes the maps counts.
  Keyed keyed(run, {"model.path=" + elsewhere.string()});
  keyed.config.norm_eps *= 2;
  CHECK(keyed.key() == key);
  keyed.config.experts.width *= 2;
  CHECK(others.insert(keyed.key()).second);
}

TEST_CASE("the frozen weights must have the digest that they had in the first run over a cache", "[weight_cache]") {
  const TinyRun run;
  const Keyed keyed(run, {"model.cache=" + run.to("cache")});
  const auto cache = open_weight_cache(keyed.recipe, keyed.config, *keyed.source());
  REQUIRE(cache != nullptr);
  compare_with_first_digest(*cache, keyed.recipe, "a1");
  compare_with_first_digest(*cache, keyed.recipe, "a1");
  CHECK(contains(message_of<UserError>([&] { compare_with_first_digest(*cache, keyed.recipe, "b2"); }),
                 "have the digest b2, with this cache they had \"a1\" before"));
  // Plain tensors are held in the dtype of the run: another one has a digest of its own.
  const Keyed fp32(run, {"model.cache=" + run.to("cache"), "model.compute=fp32"});
  compare_with_first_digest(*cache, fp32.recipe, "b2");
  CHECK(open_weight_cache(Keyed(run).recipe, keyed.config, *keyed.source()) == nullptr);
}

TEST_CASE("inspect says of a cache what it was made from and how far it is filled", "[weight_cache]") {
  const TinyRun run;
  const Keyed keyed(run, {"model.cache=" + run.to("cache")});
  const auto cache = open_weight_cache(keyed.recipe, keyed.config, *keyed.source());
  const FrozenShape shape{BaseFormat::kNf4, 1, 16, 16, {}};
  const FrozenWeight weight(shape, at::kCPU, at::kFloat);
  const auto file = cache->open("layer-001-dense", {{"a", shape}, {"b", shape}});
  file->put(1, weight.pack(at::ones({16, 16})));
  const auto mtp = cache->open("layer-002-dense", {{"c", shape}});
  mtp->put(0, weight.pack(at::ones({16, 16})));
  const std::string text = inspect(run.to("cache"));
  CHECK(contains(text, "packed weights " + cache->folder().string()));
  CHECK(contains(text, "of " + run.model().string() + " (deepseek_v3) in nf4"));
  // Attention 5 maps in two layers, a dense MLP and a shared expert of three, four experts of three.
  CHECK(contains(text, "unfinished: 1 of 28 matrices"));
  CHECK(contains(text, "; 1 of the MTP module"));
  CHECK(inspect(cache->folder()) == text);
}
