// Checkpoints of one rank: what comes back, what is refused, what is kept.
#include "tests/support/catch.h"

#include <fstream>

#include <nlohmann/json.hpp>

#include "parallel/base/error.h"
#include "parallel/base/files.h"
#include "parallel/comm/launch.h"
#include "tests/support/message_of.h"
#include "tests/support/temporary_folder.h"
#include "tests/support/tiny_model.h"
#include "trainer/state/checkpoint.h"
#include "trainer/state/manifest.h"

using namespace moetune;
namespace fs = std::filesystem;

namespace {

/// A model, its optimizer and the state to save; different numbers for different `fill`.
struct Run {
  explicit Run(uint64_t fill, std::vector<std::string> targets = {"all_linear"})
      : tiny(tiny_config(3), {.base = BaseFormat::kFp32, .compute = at::kFloat, .targets = std::move(targets)}),
        partition(tiny.model->parameters, mesh),
        optimizer(partition, {}),
        state{*tiny.model, optimizer, "run: {}\n", "frozen", "data", 17, 4} {
    std::vector<at::Tensor> gradients;
    for (const FlatGroup& group : partition.groups()) {
      gradients.push_back(random_normal({group.shard_size()}, fill++).to(at::kFloat));
    }
    optimizer.step(0.1, 1.0, gradients);  // pending: saving completes it
    for (Block& block : tiny.model->blocks) {
      if (block.is_moe()) block.router()->bias().copy_(random_normal({4}, fill++));
    }
  }
  /// Everything that a checkpoint carries.
  std::vector<at::Tensor> numbers() {
    optimizer.flush();
    std::vector<at::Tensor> found;
    for (const Optimizer::Shard& shard : optimizer.shards()) {
      found.insert(found.end(), {shard.master.clone(), shard.first_moment.clone(), shard.second_moment.clone()});
    }
    for (Parameter& parameter : tiny.model->parameters.all()) found.push_back(parameter.working.detach().clone());
    for (Block& block : tiny.model->blocks) {
      if (block.is_moe()) found.push_back(block.router()->bias().clone());
    }
    return found;
  }
  Launch launch;
  Mesh mesh{launch, {1, 1, 1, 1}};
  TinyModel tiny;
  Partition partition;
  Optimizer optimizer;
  TrainingState state;
};

bool all_equal(const std::vector<at::Tensor>& a, const std::vector<at::Tensor>& b) {
  return std::equal(a.begin(), a.end(), b.begin(), b.end(),
                    [](const at::Tensor& x, const at::Tensor& y) { return at::equal(x, y); });
}

void flip_byte(const fs::path& path, int64_t from_end) {
  std::fstream file(path, std::ios::in | std::ios::out | std::ios::binary);
  file.seekg(-from_end, std::ios::end);
  const char byte = static_cast<char>(file.peek() ^ 1);
  file.seekp(-from_end, std::ios::end);
  file.put(byte);
}

struct Place {
  Launch launch;
  Mesh mesh{launch, {1, 1, 1, 1}};
  TemporaryFolder folder;
  Checkpoints checkpoints{folder.path(), mesh};
  fs::path step(int64_t number) const { return folder.path() + "/step-0000000" + std::to_string(number); }
};

const char* const kState = "state-00000-of-00001.safetensors";

}  // namespace

TEST_CASE("a checkpoint brings everything back bit for bit", "[checkpoint]") {
  Place place;
  Run saved(1), loaded(1000);
  CHECK(!place.checkpoints.load_latest(saved.state));
  saved.optimizer.set_steps_taken(7);
  place.checkpoints.save(7, saved.state, 2);
  CHECK(!all_equal(loaded.numbers(), saved.numbers()));
  CHECK(place.checkpoints.load_latest(loaded.state) == 7);
  CHECK(all_equal(loaded.numbers(), saved.numbers()));
  CHECK(loaded.optimizer.steps_taken() == 7);
  CHECK(read_text_file((place.step(7) / "recipe.yaml").string()) == "run: {}\n");

  TinyModel weights_only(tiny_config(3), {.base = BaseFormat::kFp32, .compute = at::kFloat});
  load_weights(SavedState(place.step(7)), *weights_only.model);
  const auto& there = saved.tiny.model->parameters.all();
  for (size_t i = 0; i < there.size(); ++i) {
    CHECK(at::equal(weights_only.model->parameters.all()[i].master(), there[i].working));
    CHECK(at::equal(weights_only.model->parameters.all()[i].working, there[i].working));
  }
  CHECK(at::equal(weights_only.model->blocks[1].router()->bias(), saved.tiny.model->blocks[1].router()->bias()));
}

TEST_CASE("a damaged checkpoint is named and passed over", "[checkpoint]") {
  Place place;
  Run first(1), second(50), loaded(1000);
  place.checkpoints.save(1, first.state, 5);
  place.checkpoints.save(2, second.state, 5);
  SECTION("a byte of the tensors") { flip_byte(place.step(2) / kState, 5); }
  SECTION("a byte of the recipe") { flip_byte(place.step(2) / "recipe.yaml", 2); }
  SECTION("a missing file") { fs::remove(place.step(2) / kState); }
  SECTION("a short file") { fs::resize_file(place.step(2) / kState, 100); }
  SECTION("no manifest") { fs::remove(place.step(2) / "manifest.json"); }
  SECTION("half a manifest") { fs::resize_file(place.step(2) / "manifest.json", 40); }
  SECTION("a manifest of another make") {
    write_text_atomically((place.step(2) / "manifest.json").string(), R"({"format": 3, "files": {}})");
  }
  SECTION("a manifest without digests") {
    write_text_atomically((place.step(2) / "manifest.json").string(),
                          R"({"format": "moetune-checkpoint-2", "step": 2, "files": {"recipe.yaml": {}}})");
  }
  CHECK(contains(message_of<UserError>([&] { verify_checkpoint(place.step(2)); }), "step-00000002"));
  CHECK(place.checkpoints.load_latest(loaded.state) == 1);
  CHECK(all_equal(loaded.numbers(), first.numbers()));
  fs::remove(place.step(1) / kState);
  CHECK(
      contains(message_of<UserError>([&] { place.checkpoints.load_latest(loaded.state); }), "no checkpoint is whole"));
}

TEST_CASE("a checkpoint of an older format is refused by its name", "[checkpoint]") {
  Place place;
  Run run(1);
  place.checkpoints.save(1, run.state, 1);
  write_text_atomically((place.step(1) / "manifest.json").string(),
                        R"({"format": "moetune-checkpoint-1", "step": 1, "files": {}})");
  const std::string message = message_of<UserError>([&] { place.checkpoints.load_latest(run.state); });
  CHECK(contains(message, "step-00000001/manifest.json: is of format \"moetune-checkpoint-1\""));
  CHECK(contains(message, "adapter.from"));
}

TEST_CASE("a run that differs from the saved one is refused", "[checkpoint]") {
  Place place;
  Run saved(1), other(1000);
  place.checkpoints.save(1, saved.state, 1);
  auto refusal = [&] { return message_of<UserError>([&] { place.checkpoints.load_latest(other.state); }); };
  SECTION("seed") {
    other.state.seed = 18;
    CHECK(contains(refusal(), "run.seed was then 17, now 18"));
  }
  SECTION("batch") {
    other.state.batch = 5;
    CHECK(contains(refusal(), "train.batch was then 4, now 5"));
  }
  SECTION("data") {
    other.state.data_digest = "x";
    CHECK(contains(refusal(), "training data"));
  }
  SECTION("frozen weights") {
    other.state.frozen_digest = "x";
    CHECK(contains(refusal(), "frozen weights"));
  }
  SECTION("fewer adapters") {
    Run fewer(1, {"attention"});
    CHECK(
        contains(message_of<UserError>([&] { place.checkpoints.load_latest(fewer.state); }), "other adapter targets"));
  }
  SECTION("more adapters") {
    Run attention(1, {"attention"});
    place.checkpoints.save(2, attention.state, 1);
    CHECK(contains(refusal(), "has no model.layers.0.mlp.gate_proj.lora_A.weight"));
  }
}

TEST_CASE("the newest checkpoints are kept, and never less than the one just saved", "[checkpoint]") {
  Place place;
  Run run(1);
  auto steps = [&] {
    std::vector<std::string> names;
    for (const fs::path& path : list_checkpoints(place.folder.path())) {
      names.push_back(path.filename().string().substr(12));
    }
    return names;
  };
  for (int64_t step = 1; step <= 4; ++step) place.checkpoints.save(step, run.state, 2);
  CHECK(steps() == std::vector<std::string>{"3", "4"});
  place.checkpoints.save(4, run.state, 2);
  CHECK(steps() == std::vector<std::string>{"3", "4"});

  // 5 turns out damaged, the run goes on from 3 and saves at 4: what it saved must outlive the damaged newer one.
  place.checkpoints.save(5, run.state, 3);
  flip_byte(place.step(5) / kState, 5);
  fs::remove_all(place.step(4));
  CHECK(place.checkpoints.load_latest(run.state) == 3);
  place.checkpoints.save(4, run.state, 1);
  CHECK(place.checkpoints.load_latest(run.state) == 4);
}
