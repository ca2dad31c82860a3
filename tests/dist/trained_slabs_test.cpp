// Trained weights in slabs: whole while their layer is in use, wherever they lie and whoever keeps them, for graphs of
// an earlier use too; new numbers reach all; a rank keeps what the formula says.
#include "trainer/update/trained_slabs.h"

#include <algorithm>

#include <torch/csrc/autograd/autograd.h>

#include "parallel/base/error.h"
#include "tests/support/catch.h"
#include "tests/support/dist.h"
#include "trainer/plan/trained_placement.h"
#include "trainer/update/optimizer.h"

using namespace moetune;

namespace {

constexpr int64_t kLayers = 5;

/// Weights [O, I] and [O] of each block, whole numbers that bf16 holds, the same on every rank that holds copies.
at::Tensor initial(int64_t layer, at::IntArrayRef shape) {
  return at::arange(c10::multiply_integers(shape), at::kFloat).remainder(17 + layer).view(shape) - 8.0;
}

struct HeldWeights {
  HeldWeights(const MeshShape& shape, ShardScope scope, SlabTier tier)
      : launch(test_launch()),
        mesh(launch, shape),
        shards(launch, mesh, scope, /*uncut=*/true),
        store(launch.device()),
        slabs(mesh, shards, store, tier),
        parameters(launch.device(), at::kBFloat16) {
    for (int64_t layer = 0; layer < kLayers; ++layer) {
      add(layer, "matrix", Replicas::kTensorIndex, {6 + layer, 35});
      add(layer, "vector", Replicas::kEverywhere, {3});
      add(layer, "experts", Replicas::kExpertReplicas, {2, 5, 8});
      slabs.take(parameters.of_layer(LayerId::block(layer)));
    }
  }
  void add(int64_t layer, const char* name, Replicas replicas, std::vector<int64_t> shape) {
    ParameterInfo info;
    info.name = str(name, layer);
    info.layer = LayerId::block(layer);
    info.replicas = replicas;
    info.decays = shape.size() > 1;
    parameters.add(info, initial(layer, shape));
  }
  std::vector<int> uses(const std::vector<int64_t>& layers) const {
    std::vector<int> uses;
    for (const int64_t layer : layers) {
      for (const int slab : slabs.uses(LayerId::block(layer))) uses.push_back(slab);
    }
    return uses;
  }
  void check_layer(int64_t layer, double by) {
    slabs.use(LayerId::block(layer));
    for (Parameter* parameter : parameters.of_layer(LayerId::block(layer))) {
      INFO(parameter->name());
      const at::Tensor found = parameter->working.detach().cpu().to(at::kFloat);
      CHECK(at::equal(found, initial(layer, parameter->working.sizes()) + by));
    }
    slabs.release(LayerId::block(layer));
  }
  Launch& launch;
  Mesh mesh;
  ShardGroups shards;
  WeightStore store;
  TrainedSlabs slabs;
  ParameterSet parameters;
};

struct Layout {
  MeshShape shape;
  ShardScope scope;
  SlabTier tier;
};

std::vector<Layout> layouts() {
  const int64_t P = test_launch().world_size();
  std::vector<Layout> layouts;
  for (const ShardScope scope : {ShardScope::kNone, ShardScope::kNode, ShardScope::kAll}) {
    for (const SlabTier tier : {SlabTier::kDevice, SlabTier::kHost}) {
      for (const MeshShape& shape : {MeshShape{1, P, 1, 1, 1}, MeshShape{1, 1, P, 1, 1}, MeshShape{1, 1, 1, P, 1},
                                     MeshShape{1, P / 2, 1, 2, 2}, MeshShape{P / 2, 2, 1, 1, 1}}) {
        layouts.push_back({shape, scope, tier});
      }
    }
  }
  return layouts;
}

}  // namespace

TEST_CASE("weights are whole while their layer is in use, and new ones reach every copy", "[trained_slabs]") {
  for (const Layout& layout : layouts()) {
    INFO(to_string(layout.shape) << ", scope " << static_cast<int>(layout.scope) << ", tier "
                                 << static_cast<int>(layout.tier));
    HeldWeights held(layout.shape, layout.scope, layout.tier);
    Partition partition(held.parameters, held.mesh, held.slabs.groups());
    OptimizerOptions options;
    options.tier = options.gradients = layout.tier;  // either way in turn
    Optimizer optimizer(partition, options);
    const std::vector<int64_t> sweep = {0, 1, 2, 3, 4, 4, 3, 2, 1, 0};
    for (int round = 0; round < 3; ++round) {
      held.store.schedule(held.uses(sweep));
      for (const int64_t layer : sweep) held.check_layer(layer, round);
      for (size_t i = 0; i < partition.groups().size(); ++i) {
        for (const FlatGroup::Piece& piece : partition.groups()[i].own_pieces()) {
          optimizer.shards()[i].master.narrow(0, piece.in_shard, piece.count).add_(1.0);
        }
      }
      optimizer.publish();
    }
    // Numbers of a slab fill up to a multiple of 128, and so does each rank's part where it is shared.
    int64_t bytes = 0;
    for (const FlatGroup& group : partition.groups()) {
      int64_t flat = 0;
      for (const FlatGroup::Member& member : group.members()) flat += (member.parameter->numel() + 127) / 128 * 128;
      const int64_t copies = group.ranks().size();
      const int64_t part = ((flat + copies - 1) / copies + 127) / 128 * 128;
      bytes += 2 * (layout.scope == ShardScope::kNone ? copies * part : part);
    }
    CHECK(held.slabs.kept_bytes() == bytes);

    // What the plan says of it, and of three rounds.
    Recipe recipe;
    recipe.mesh.shard = layout.scope;
    recipe.offload.trained = layout.tier == SlabTier::kHost ? OffloadTier::kHost : OffloadTier::kNone;
    WeightNumbers numbers;
    for (const FlatGroup& group : partition.groups()) {
      for (const FlatGroup::Member& member : group.members()) {
        numbers[{group.layer(), group.replicas()}] += (member.parameter->numel() + 127) / 128 * 128;
      }
    }
    StepProgram program;
    for (size_t i = 0; i < sweep.size(); ++i) {
      program.push_back({i < sweep.size() / 2 ? StepOp::Kind::kDown : StepOp::Kind::kUp, LayerId::block(sweep[i]),
                         Keep::kNothing, 0});
    }
    const TrainedPlacement placed = place_trained(numbers, recipe, layout.shape, Machine{}, program);
    CHECK(placed.device_bytes + placed.host_bytes == bytes);
    CHECK((placed.host_bytes > 0) == (layout.tier == SlabTier::kHost));
    CHECK(held.store.traffic().gathered == 3 * placed.gathered_bytes_per_step);
    CHECK(held.store.traffic().copied == 3 * placed.copied_bytes_per_step);
  }
}

TEST_CASE("a graph of an earlier use finds the weights in a later one, wherever they lie", "[trained_slabs]") {
  HeldWeights held({1, test_launch().world_size(), 1, 1, 1}, ShardScope::kAll, SlabTier::kHost);
  const std::vector<int64_t> uses = {0, 1, 2, 3, 4, 4, 3, 2, 1, 0};
  held.store.schedule(held.uses(uses));
  std::vector<at::Tensor> x, y;
  const auto parameter = [&](int64_t layer) { return held.parameters.of_layer(LayerId::block(layer))[0]; };
  for (int64_t layer = 0; layer < kLayers; ++layer) {
    held.slabs.use(LayerId::block(layer));
    x.push_back(at::ones({2, 35}, at::TensorOptions(at::kBFloat16).device(held.launch.device())).requires_grad_());
    y.push_back(at::linear(x.back(), parameter(layer)->working.narrow(0, 1, 4)));
    held.slabs.release(LayerId::block(layer));
  }
  for (int64_t layer = kLayers - 1; layer >= 0; --layer) {
    INFO("layer " << layer);
    held.slabs.use(LayerId::block(layer));
    const auto gradients = torch::autograd::grad({y[layer].sum()}, {x[layer], parameter(layer)->working});
    held.slabs.release(LayerId::block(layer));
    const at::Tensor weight = initial(layer, parameter(layer)->working.sizes()).narrow(0, 1, 4);
    CHECK(at::equal(gradients[0][0].cpu().to(at::kFloat), weight.sum(0)));
    CHECK(gradients[1].sum().item<double>() == 2.0 * 4 * 35);
  }
}

TEST_CASE("what is fetched has been updated first, and nothing is fetched for the next round", "[trained_slabs]") {
  HeldWeights held({1, test_launch().world_size(), 1, 1, 1}, ShardScope::kAll, SlabTier::kDevice);
  std::vector<int64_t> asked;
  held.slabs.before_fetch([&](const TrainedSlab& slab) { asked.push_back(slab.group().layer().number()); });
  for (int round = 0; round < 2; ++round) {
    asked.clear();
    held.store.schedule(held.uses({0, 1, 2}));
    for (const int64_t layer : {0, 1, 2}) held.check_layer(layer, 0);
    // Three lanes, each fetching its layers in their order, all of them once.
    std::vector<int64_t> sorted = asked;
    std::sort(sorted.begin(), sorted.end());
    CHECK(sorted == std::vector<int64_t>{0, 0, 0, 1, 1, 1, 2, 2, 2});
  }
}
