// What one mesh saved, another reads: every number at its place, whatever part of it each rank holds.
#include "trainer/state/checkpoint.h"

#include <filesystem>
#include <fstream>

#include "parallel/base/error.h"
#include "tests/support/catch.h"
#include "tests/support/dist.h"
#include "tests/support/memory_count.h"
#include "tests/support/message_of.h"
#include "tests/support/tiny_model.h"
#include "trainer/state/manifest.h"

using namespace moetune;
namespace fs = std::filesystem;

namespace {

/// A model of this rank on a mesh of its own, with the state to save.
struct Run {
  explicit Run(const MeshShape& shape, const Blueprint& blueprint = tiny_blueprint(3),
               BaseFormat base = BaseFormat::kFp32)
      : mesh(test_launch(), shape),
        tiny(blueprint,
             {.base = base,
              .compute = at::kBFloat16,
              .targets = {"q_a_proj", "q_b_proj", "o_proj", "dense_mlp", "shared_expert", "experts.up_proj",
                          "experts.down_proj"}},
             &mesh),
        partition(tiny.model->parameters, mesh),
        optimizer(partition, {}),
        state{*tiny.model, optimizer, "run: {}\n", "frozen", "data", 17, 4} {}

  /// What this rank holds of a tensor whose numbers, over all ranks, count up from one that its name gives.
  static at::Tensor expected(const Parameter& parameter) {
    const ParameterInfo& info = parameter.info();
    std::vector<int64_t> whole = info.part.whole_shape(parameter.working.sizes());
    if (info.num_experts > 0) whole[0] = info.num_experts;
    const at::Tensor numbers = at::arange(c10::multiply_integers(whole), at::kFloat).view(whole) +
                               static_cast<double>(info.name.size() * 1000 + info.layer.number());
    const at::Tensor part = info.part.of(numbers, parameter.working.sizes());
    return info.num_experts > 0 ? part.narrow(0, info.first_expert, parameter.working.size(0)) : part;
  }
  /// Calls visit(tensor of the optimizer's, what it should hold) for masters and moments of this rank.
  template <typename Visit>
  void for_each_run(const Visit& visit) {
    for (size_t i = 0; i < partition.groups().size(); ++i) {
      const Optimizer::Shard& shard = optimizer.shards()[i];
      for (const FlatGroup::Piece& piece : partition.groups()[i].own_pieces()) {
        const at::Tensor numbers = expected(*piece.parameter).flatten().narrow(0, piece.first, piece.count);
        visit(shard.master.narrow(0, piece.in_shard, piece.count), numbers);
        visit(shard.first_moment.narrow(0, piece.in_shard, piece.count), numbers + 0.25);
        visit(shard.second_moment.narrow(0, piece.in_shard, piece.count), numbers + 0.5);
      }
    }
  }
  Mesh mesh;
  TinyModel tiny;
  Partition partition;
  Optimizer optimizer;
  TrainingState state;
};

/// A folder that all ranks see; rank 0 removes it at the end, when wait_for_all() has seen the others leave it.
struct SharedFolder {
  SharedFolder() {
    std::string made = fs::temp_directory_path() / "moetune-dist-XXXXXX";
    if (test_launch().rank() == 0) REQUIRE(::mkdtemp(made.data()) != nullptr);
    path = test_launch().broadcast_string(made);
  }
  ~SharedFolder() {
    if (test_launch().rank() == 0) fs::remove_all(path);
  }
  void wait_for_all() { test_launch().max_over_world(0); }
  fs::path path;
};

}  // namespace

namespace {

/// Saves step 6 while the masters change; the ranks agree on it as a run's do, between steps.
void save_beside(Run& run, const fs::path& folder) {
  Checkpoints checkpoints(folder, run.mesh, "", std::make_unique<OrderedWorker>(1));
  checkpoints.begin(6, run.state, 1);
  for (const Optimizer::Shard& shard : run.optimizer.shards()) shard.master.zero_();
  for (std::optional<Checkpoints::Time> whole_at; !whole_at;) {
    if (test_launch().max_over_world(checkpoints.has_done_its_part() ? 0 : 1) == 0) whole_at = checkpoints.advance();
  }
  CHECK(!checkpoints.unfinished());
}

/// Bytes of tensors that loading may take beside what the rank holds anyway: what was read of one tensor of the model,
/// put together, and copied; or the working copies of a layer on their way to the ranks. Never the model.
int64_t most_to_load(const Run& run) {
  int64_t tensor = 0, layer = 0;
  for (const FlatGroup& group : run.partition.groups()) {
    layer = std::max(layer, 2 * group.flat_size());
    for (const FlatGroup::Member& member : group.members()) {
      tensor = std::max<int64_t>(tensor, 4 * member.parameter->working.numel());
    }
  }
  constexpr int64_t kRounding = 64;  // the allocator's, of a tensor
  return std::max(3 * tensor, 2 * layer) + 100 * kRounding;
}

/// What each mesh saves each reads.
void require_exchange(const std::vector<MeshShape>& shapes, const Blueprint& blueprint, BaseFormat base) {
  const int64_t P = test_launch().world_size();
  for (const MeshShape& from : shapes) {
    SharedFolder folder;
    {
      Run saved(from, blueprint, base);
      saved.for_each_run([](at::Tensor held, const at::Tensor& numbers) { held.copy_(numbers); });
      for (int64_t block = 1; block < 3; ++block) {
        saved.tiny.model->blocks[block].router()->bias().fill_(static_cast<double>(block));
      }
      saved.optimizer.set_steps_taken(6);
      save_beside(saved, folder.path);
      CHECK(read_manifest(folder.path / "step-00000006").files.size() == static_cast<size_t>(P + 1));
    }
    for (const MeshShape& to : shapes) {
      INFO("from " << to_string(from) << " to " << to_string(to));
      Run loaded(to, blueprint, base);
      const int64_t peak =
          peak_tensor_bytes([&] { CHECK(Checkpoints(folder.path, loaded.mesh).load_latest(loaded.state) == 6); });
      CHECK(peak <= most_to_load(loaded));
      CHECK(loaded.optimizer.steps_taken() == 6);
      loaded.for_each_run([](const at::Tensor& held, const at::Tensor& numbers) { CHECK(at::equal(held, numbers)); });
      for (const Parameter& parameter : loaded.tiny.model->parameters.all()) {
        CHECK(at::equal(parameter.working, Run::expected(parameter).to(at::kBFloat16)));
      }
      for (int64_t block = 1; block < 3; ++block) {
        CHECK(at::equal(loaded.tiny.model->blocks[block].router()->bias(), at::full({4}, static_cast<float>(block))));
      }
    }
    folder.wait_for_all();
  }
}

}  // namespace

TEST_CASE("a checkpoint of one mesh is that of another, number by number", "[checkpoint]") {
  if (test_launch().device().is_cuda()) return;  // the tiny model is built on the CPU
  const int64_t P = test_launch().world_size();
  require_exchange(
      {{1, P, 1, 1}, {1, 1, P, 1}, {1, P / 2, 2, 1}, {1, 1, P / 2, 2}, {1, 1, P / 2, 2, 2}, {1, P / 2, 1, 2, 2}},
      tiny_blueprint(3), BaseFormat::kFp32);
}

TEST_CASE("so it is where MLPs are cut into parts of unequal size, some of them empty", "[checkpoint]") {
  if (test_launch().device().is_cuda()) return;
  const int64_t P = test_launch().world_size();
  Blueprint blueprint = tiny_blueprint(3);
  for (LayerSpec& layer : blueprint.layers) layer.attention.heads = layer.attention.kv_heads = 4;
  blueprint.layers[0].dense_width = 320;
  blueprint.experts.width = 192;
  blueprint.experts.shared_width = 96;
  std::vector<MeshShape> shapes = {{1, 1, P, 1}, {1, 1, P / 2, 2}, {1, P / 2, 1, 2, 2}};
  if (P % 4 == 0) shapes.insert(shapes.end(), {{1, 1, P / 4, 4}, {1, P / 4, 1, 4, 4}});
  require_exchange(shapes, blueprint, BaseFormat::kNf4);
}

TEST_CASE("what one rank finds damaged is damaged for all", "[checkpoint]") {
  if (test_launch().device().is_cuda()) return;
  const int64_t P = test_launch().world_size();
  Run run({1, P, 1, 1});
  SharedFolder folder;
  Checkpoints checkpoints(folder.path, run.mesh);
  checkpoints.save(1, run.state, 3);
  checkpoints.save(2, run.state, 3);
  auto damage = [&](const char* step) {
    // The second of the files (recipe.yaml is the first): rank 1 reads it.
    if (test_launch().rank() == 0) {
      std::ofstream(folder.path / step / str("state-00000-of-0000", P, ".safetensors"), std::ios::app) << "x";
    }
    folder.wait_for_all();
  };
  damage("step-00000002");
  CHECK(checkpoints.load_latest(run.state) == 1);
  damage("step-00000001");
  CHECK(contains(message_of<UserError>([&] { checkpoints.load_latest(run.state); }), "manifest.json says"));
  folder.wait_for_all();
}
