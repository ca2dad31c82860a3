// Checkpoints of one rank: what comes back, what is refused, what is kept.
#include "tests/support/catch.h"

#include <sys/stat.h>

#include <fstream>

#include <nlohmann/json.hpp>

#include "parallel/base/error.h"
#include "parallel/base/files.h"
#include "parallel/comm/launch.h"
#include "tests/support/message_of.h"
#include "tests/support/temporary_folder.h"
#include "tests/support/tiny_model.h"
#include "trainer/state/checkpoint.h"
#include "trainer/state/checkpoint_folder.h"
#include "trainer/state/manifest.h"

using namespace moetune;
namespace fs = std::filesystem;

namespace {

/// A model, its optimizer and the state to save; different numbers for different `fill`.
struct Run {
  explicit Run(uint64_t fill, std::vector<std::string> targets = {"all_linear"})
      : tiny(tiny_blueprint(3), {.base = BaseFormat::kFp32, .compute = at::kFloat, .targets = std::move(targets)}),
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

  TinyModel weights_only(tiny_blueprint(3), {.base = BaseFormat::kFp32, .compute = at::kFloat});
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
  SECTION("a manifest that says another step") {
    fs::remove_all(place.step(2));
    fs::copy(place.step(1), place.step(2));
  }
  SECTION("a link to a whole checkpoint") {
    fs::rename(place.step(2), place.folder / "elsewhere");
    fs::create_directory_symlink(place.folder / "elsewhere", place.step(2));
  }
  SECTION("a manifest that is a pipe") {
    fs::remove(place.step(2) / "manifest.json");
    REQUIRE(::mkfifo((place.step(2) / "manifest.json").c_str(), 0600) == 0);
  }
  SECTION("a state that is a pipe") {
    fs::remove(place.step(2) / kState);
    REQUIRE(::mkfifo((place.step(2) / kState).c_str(), 0600) == 0);
  }
  SECTION("a recipe that is a link") {
    fs::rename(place.step(2) / "recipe.yaml", place.folder / "recipe.yaml");
    fs::create_symlink(place.folder / "recipe.yaml", place.step(2) / "recipe.yaml");
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

TEST_CASE("any flipped bit of any file of a checkpoint is noticed", "[checkpoint]") {
  Place place;
  Run run(1);
  run.state.config_text = "{\"model_type\": \"tiny\"}";
  run.state.best = BestStep{1, 0.75, "d"};
  place.checkpoints.save(2, run.state, 5);
  REQUIRE(damage_of(place.step(2)).empty());
  for (const char* name : {"manifest.json", "recipe.yaml", "config.json", kState}) {
    const std::string path = (place.step(2) / name).string();
    std::string bytes = read_text_file(path);
    // All bits of the manifest, some of what it has the digests of.
    const size_t stride = std::string(name) == "manifest.json" ? 1 : 8 * bytes.size() / 40 + 1;
    for (size_t bit = 0; bit < 8 * bytes.size(); bit += stride) {
      bytes[bit / 8] = static_cast<char>(bytes[bit / 8] ^ (1 << bit % 8));
      {
        std::ofstream file(path, std::ios::binary);
        file << bytes;
      }
      const std::string damage = damage_of(place.step(2));
      if (damage.empty() || !contains(damage, "step-00000002")) {
        INFO(name << ", bit " << bit << ": " << damage);
        CHECK(false);
      }
      bytes[bit / 8] = static_cast<char>(bytes[bit / 8] ^ (1 << bit % 8));
    }
    std::ofstream file(path, std::ios::binary);
    file << bytes;
  }
  CHECK(damage_of(place.step(2)).empty());
}

TEST_CASE("a manifest of the format before, without a digest of itself, is read", "[checkpoint]") {
  Place place;
  Run run(1), loaded(1000);
  place.checkpoints.save(1, run.state, 1);
  nlohmann::ordered_json json =
      nlohmann::ordered_json::parse(read_text_file((place.step(1) / "manifest.json").string()));
  json.erase("digest");
  json["format"] = "moetune-checkpoint-2";
  write_text_atomically((place.step(1) / "manifest.json").string(), json.dump(2) + "\n");
  CHECK(place.checkpoints.load_latest(loaded.state) == 1);
  CHECK(all_equal(loaded.numbers(), run.numbers()));
}

TEST_CASE("a wrong type or value in a manifest names file and member", "[checkpoint]") {
  Place place;
  Run run(1);
  place.checkpoints.save(1, run.state, 1);
  const std::string path = (place.step(1) / "manifest.json").string();
  nlohmann::json whole = nlohmann::json::parse(read_text_file(path));
  whole.erase("digest");
  whole["format"] = "moetune-checkpoint-2";  // its own digest would say no more than that it differs
  struct Case {
    const char* pointer;
    nlohmann::json value;
    const char* named;
  };
  for (const Case& test : std::vector<Case>{{"/step", "1", "\"step\""},
                                            {"/step", 1.5, "\"step\""},
                                            {"/step", true, "\"step\""},
                                            {"/step", -1, "\"step\""},
                                            {"/step", 18446744073709551615u, "\"step\""},
                                            {"/step", {1}, "\"step\""},
                                            {"/seed", nullptr, "\"seed\""},
                                            {"/batch", "4", "\"batch\""},
                                            {"/mesh", 3, "\"mesh\""},
                                            {"/frozen_digest", 3, "\"frozen_digest\""},
                                            {"/data_digest", nlohmann::json::array(), "\"data_digest\""},
                                            {"/format", 2, "\"format\""},
                                            {"/files", "recipe.yaml", "\"files\""},
                                            {"/files/recipe.yaml", 3, "\"recipe.yaml\""},
                                            {"/files/recipe.yaml/sha256", "0", "\"sha256\""},
                                            {"/files/recipe.yaml/bytes", "9", "\"bytes\""},
                                            {"/files/..~1..~1etc~1passwd", {{"bytes", 1}}, "../../etc/passwd"},
                                            {"/best", 3, "best"},
                                            {"/best", {{"step", 1}, {"loss", "low"}, {"data", "d"}}, "\"loss\""}}) {
    nlohmann::json json = whole;
    json[nlohmann::json::json_pointer(test.pointer)] = test.value;
    write_text_atomically(path, json.dump());
    INFO(test.pointer << ": " << test.value.dump());
    const std::string message = message_of<UserError>([&] { read_manifest(place.step(1)); });
    CHECK(contains(message, path));
    CHECK(contains(message, test.named));
  }
  for (const auto& [text, named] :
       std::vector<std::pair<std::string, std::string>>{{"", "manifest.json"},
                                                        {"[]", "an object"},
                                                        {"{\"step\": 1, \"step\": 2}", "step"},
                                                        {"{", "manifest.json"}}) {
    write_text_atomically(path, text);
    CHECK(contains(message_of<UserError>([&] { read_manifest(place.step(1)); }), named));
  }
}

TEST_CASE("checkpoints are step-DIGITS, in the order of their numbers; copies are neither taken nor removed",
          "[checkpoint]") {
  Place place;
  Run run(1);
  for (const char* name : {"step-best", "step-00000006-keep", "step-", "step-1x", "step--1", "xstep-1", "step-1 ",
                           "step-99999999999999999999", "Step-3"}) {
    INFO(name);
    CHECK(!step_of_name(place.folder / name));
  }
  CHECK(step_of_name(place.folder / "step-00000010/") == 10);
  CHECK(step_of_name(place.folder / "step-7") == 7);
  place.checkpoints.save(6, run.state, 5);
  fs::copy(place.step(6), place.folder / "step-best");
  fs::copy(place.step(6), place.folder / "step-00000006-keep");
  // By text step-100000000 would come before step-99999999.
  for (const int64_t step : {99999999, 100000000}) place.checkpoints.save(step, run.state, 1);
  write_text_atomically(place.folder / "step-00000009", "a file of the user's");
  std::vector<std::string> names;
  for (const fs::path& path : list_checkpoints(place.folder.path())) names.push_back(path.filename().string());
  CHECK(names == std::vector<std::string>{"step-100000000"});
  CHECK(damage_of(place.folder / "step-best").empty());
  CHECK(damage_of(place.folder / "step-00000006-keep").empty());
  CHECK(place.checkpoints.load_latest(run.state) == 100000000);
  CHECK(fs::exists(place.folder / "step-00000009"));
}

TEST_CASE("saving loses nothing that a user put where checkpoints go", "[checkpoint]") {
  Place place;
  Run run(1);
  write_text_atomically(place.step(1).string(), "a file of the user's");
  place.checkpoints.save(1, run.state, 1);
  CHECK(read_text_file(place.step(1).string() + "-before-1") == "a file of the user's");
  write_text_atomically((place.step(1) / "notes.txt").string(), "the good one");
  place.checkpoints.save(2, run.state, 1);
  CHECK(read_text_file((place.step(1) / "notes.txt").string()) == "the good one");
  CHECK(damage_of(place.step(1)).empty());
  place.checkpoints.save(1, run.state, 1);
  CHECK(read_text_file(place.step(1).string() + "-before-2/notes.txt") == "the good one");
}

TEST_CASE("the best checkpoint stays beside the last ones, and a resumed run knows it", "[checkpoint]") {
  Place place;
  Run run(1), loaded(1000);
  auto steps = [&] {
    std::vector<int64_t> found;
    for (const fs::path& path : list_checkpoints(place.folder.path())) found.push_back(*step_of_name(path));
    return found;
  };
  run.state.best = BestStep{1, 0.1 + 0.2, "d"};
  for (int64_t step = 1; step <= 4; ++step) place.checkpoints.save(step, run.state, 2);
  CHECK(steps() == std::vector<int64_t>{1, 3, 4});
  CHECK(place.checkpoints.load_latest(loaded.state) == 4);
  REQUIRE(loaded.state.best);
  CHECK(*loaded.state.best == BestStep{1, 0.1 + 0.2, "d"});
  run.state.best = BestStep{5, 0.25, "d"};
  place.checkpoints.save(5, run.state, 2);
  CHECK(steps() == std::vector<int64_t>{4, 5});
}

TEST_CASE("what killed saves left goes, and nothing else", "[checkpoint]") {
  const TemporaryFolder folder;
  const std::vector<std::string> left = {".saving-step-00000003", ".saving-step-00000003-0a1b",
                                         ".removing-step-00000001", "manifest.json.tmp-17"};
  const std::vector<std::string> kept = {".saving-mine", "step-00000001", "notes.tmp-17", "manifest.json", "step-best"};
  for (const auto* names : {&left, &kept}) {
    for (const std::string& name : *names) {
      if (name.find("json") != std::string::npos || name.find("notes") != std::string::npos) {
        write_text_atomically(folder / name, "x");
      } else {
        fs::create_directories(folder / (name + "/inside"));
      }
    }
  }
  remove_leftovers_of_saves(folder.path());
  for (const std::string& name : left) CHECK(!fs::exists(folder / name));
  for (const std::string& name : kept) CHECK(fs::exists(folder / name));
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
