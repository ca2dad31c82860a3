// Checkpoints of one rank: what comes back, what is refused, what is kept.
#include "tests/support/catch.h"

#include <sys/stat.h>

#include <fstream>
#include <future>
#include <thread>

#include <nlohmann/json.hpp>

#include "parallel/base/error.h"
#include "parallel/base/files.h"
#include "parallel/comm/launch.h"
#include "tests/support/memory_count.h"
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
  /// As training would, in place.
  void change(double by) {
    at::NoGradGuard no_grad;
    optimizer.flush();
    for (Optimizer::Shard& shard : optimizer.shards()) {
      for (const at::Tensor& tensor : {shard.master, shard.first_moment, shard.second_moment}) tensor.add_(by);
    }
    optimizer.publish();
    for (Block& block : tiny.model->blocks) {
      if (block.is_moe()) block.router()->bias().add_(by);
    }
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
  explicit Place(std::unique_ptr<OrderedWorker> writer = nullptr)
      : checkpoints(folder.path(), mesh, "", std::move(writer)) {}
  fs::path step(int64_t number) const { return folder.path() + "/step-0000000" + std::to_string(number); }
  std::vector<int64_t> steps() const {
    std::vector<int64_t> found;
    for (const fs::path& path : list_checkpoints(folder.path())) found.push_back(*step_of_name(path));
    return found;
  }
  Launch launch;
  Mesh mesh{launch, {1, 1, 1, 1}};
  TemporaryFolder folder;
  Checkpoints checkpoints;
};

/// Holds a writer's first job back.
struct Gate {
  std::unique_ptr<OrderedWorker> worker() {
    auto worker = std::make_unique<OrderedWorker>(1);
    worker->post([opened = opened.get_future().share()] { opened.wait(); });
    return worker;
  }
  void open() { opened.set_value(); }
  std::promise<void> opened;
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
  run.state.best = {{1, 0.75, "d"}};
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

TEST_CASE("the best checkpoints stay beside the last ones, and a resumed run knows them", "[checkpoint]") {
  Place place;
  Run run(1), loaded(1000);
  const std::vector<BestStep> one = {{1, 0.1 + 0.2, "d"}}, two = {{5, 0.25, "d"}, {1, 0.1 + 0.2, "d"}};
  run.state.best = one;
  for (int64_t step = 1; step <= 4; ++step) place.checkpoints.save(step, run.state, 2);
  CHECK(place.steps() == std::vector<int64_t>{1, 3, 4});
  CHECK(place.checkpoints.load_latest(loaded.state) == 4);
  CHECK((loaded.state.best == one));
  run.state.best = two;
  for (int64_t step = 5; step <= 7; ++step) place.checkpoints.save(step, run.state, 1);
  CHECK(place.steps() == std::vector<int64_t>{1, 5, 7});
  CHECK(place.checkpoints.load_latest(loaded.state) == 7);
  CHECK((loaded.state.best == two));
  run.state.best = {{8, 0.125, "d"}, {5, 0.25, "d"}};
  place.checkpoints.save(8, run.state, 1);
  CHECK(place.steps() == std::vector<int64_t>{5, 8});
}

TEST_CASE("a manifest of a version that kept one best checkpoint is read", "[checkpoint]") {
  Place place;
  Run run(1);
  run.state.best = {{1, 0.75, "d"}};
  place.checkpoints.save(1, run.state, 1);
  const std::string path = (place.step(1) / "manifest.json").string();
  nlohmann::ordered_json json = nlohmann::ordered_json::parse(read_text_file(path));
  json.erase("digest");
  json["format"] = "moetune-checkpoint-2";
  json["best"] = {{"step", 1}, {"loss", 0.75}, {"data", "d"}};
  write_text_atomically(path, json.dump());
  CHECK((read_manifest(place.step(1)).best == run.state.best));
}

TEST_CASE("what is written beside training is what was there when it was begun", "[checkpoint]") {
  Gate gate;
  Place place(gate.worker());
  Run run(1), loaded(1000);
  place.checkpoints.save(1, run.state, 1);
  const std::vector<at::Tensor> at_one = run.numbers();
  run.change(2.0);
  run.state.best = {{2, 0.5, "d"}};
  const std::vector<at::Tensor> at_two = run.numbers();
  place.checkpoints.begin(2, run.state, 1);
  CHECK(place.checkpoints.unfinished() == 2);
  // Training goes on, and nothing is written yet.
  run.change(3.0);
  run.state.best = {};
  CHECK(!place.checkpoints.has_done_its_part());
  CHECK_THROWS_AS(place.checkpoints.advance(), InternalError);  // the manifest would lack this rank's file
  CHECK(place.steps() == std::vector<int64_t>{1});
  CHECK(place.checkpoints.load_latest(loaded.state) == 1);
  CHECK(all_equal(loaded.numbers(), at_one));
  gate.open();
  std::optional<Checkpoints::Time> whole_at;
  int64_t advanced = 0;
  for (; !whole_at; ++advanced) {
    while (!place.checkpoints.has_done_its_part()) std::this_thread::yield();
    // The one before goes when the new one is there, not earlier.
    if (advanced == 0) CHECK(place.steps() == std::vector<int64_t>{1});
    whole_at = place.checkpoints.advance();
  }
  CHECK(advanced == 2);
  CHECK(!place.checkpoints.unfinished());
  CHECK(place.steps() == std::vector<int64_t>{2});
  CHECK(place.checkpoints.load_latest(loaded.state) == 2);
  CHECK(all_equal(loaded.numbers(), at_two));
  CHECK((loaded.state.best == std::vector<BestStep>{{2, 0.5, "d"}}));
  // The same memory serves the next, and waiting for it does the same.
  place.checkpoints.begin(3, run.state, 1);
  CHECK_THROWS_AS(place.checkpoints.save(4, run.state, 1), InternalError);
  place.checkpoints.finish();
  CHECK(place.steps() == std::vector<int64_t>{3});
  CHECK(place.checkpoints.load_latest(loaded.state) == 3);
  CHECK(all_equal(loaded.numbers(), run.numbers()));
}

// Whatever the size of the model: nothing but the copy that saving beside training asks for, and on the way back a
// tensor at a time.
TEST_CASE("saving and loading hold one tensor at a time beside what the optimizer holds", "[checkpoint]") {
  Place place(std::make_unique<OrderedWorker>(1));
  Run run(1), loaded(1000);
  run.optimizer.flush();
  int64_t saved_bytes = 0, largest = 0, biases = 0;
  for (const Parameter& parameter : run.tiny.model->parameters.all()) {
    saved_bytes += 3 * 4 * parameter.working.numel();
    largest = std::max<int64_t>(largest, 4 * parameter.working.numel());
  }
  for (Block& block : run.tiny.model->blocks) {
    if (block.is_moe()) biases += static_cast<int64_t>(block.router()->bias().nbytes());
  }
  REQUIRE(saved_bytes > 20 * largest);
  constexpr int64_t kRounding = 64;  // the allocator's, of a tensor
  const int64_t small = 2 * biases + 100 * kRounding;
  CHECK(peak_tensor_bytes([&] { place.checkpoints.save(1, run.state, 1); }) <= small);
  const int64_t copied = peak_tensor_bytes([&] { place.checkpoints.reserve(run.state); });
  CHECK(copied >= saved_bytes);
  CHECK(copied <= saved_bytes + small);
  CHECK(CheckpointPart::copied_bytes(saved_bytes / 12, at::kFloat) == saved_bytes);
  for (const int64_t step : {2, 3}) {
    auto count = std::make_shared<MemoryCount>();
    {
      const c10::DebugInfoGuard guard(c10::DebugInfoKind::PROFILER_STATE, count);
      place.checkpoints.begin(step, run.state, 1);
    }
    CHECK(std::max(count->largest, count->peak) <= small);  // into the same memory
    place.checkpoints.finish();
  }
  // What was read, put together, and one more for the copy in the right dtype.
  loaded.optimizer.flush();
  CHECK(peak_tensor_bytes([&] { place.checkpoints.load_latest(loaded.state); }) <= 3 * largest + small);
}

TEST_CASE("a disk that fails beside training is named, and what was whole stays", "[checkpoint]") {
  Gate gate;
  Place place(gate.worker());
  Run run(1), loaded(1000);
  place.checkpoints.save(1, run.state, 1);
  place.checkpoints.begin(2, run.state, 1);
  fs::remove_all(place.folder / ".saving-step-00000002");
  gate.open();
  SECTION("asked between steps") {
    const std::string message = message_of<UserError>([&] {
      while (!place.checkpoints.has_done_its_part()) std::this_thread::yield();
    });
    CHECK(contains(message, str(".saving-step-00000002/", kState)));
  }
  SECTION("waited for") {
    CHECK(contains(message_of<UserError>([&] { place.checkpoints.finish(); }), kState));
  }
  CHECK(place.steps() == std::vector<int64_t>{1});
  CHECK(place.checkpoints.load_latest(loaded.state) == 1);
}

TEST_CASE("a run that ends while a checkpoint is written leaves the one before", "[checkpoint]") {
  Gate gate;
  TemporaryFolder folder;
  Run run(1);
  {
    Launch launch;
    Mesh mesh(launch, {1, 1, 1, 1});
    Checkpoints checkpoints(folder.path(), mesh, "token", gate.worker());
    checkpoints.save(1, run.state, 1);
    checkpoints.begin(2, run.state, 1);
    gate.open();
  }
  CHECK(damage_of(folder / "step-00000001").empty());
  CHECK(!fs::exists(folder / "step-00000002"));
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
