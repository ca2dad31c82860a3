// An optimizer beside a GPU: what comes and goes in pieces is what the CPU's has in place, and what the GPU itself
// computes is that but for rounding.
#include "trainer/update/optimizer.h"

#include <ATen/CPUGeneratorImpl.h>

#include "parallel/comm/launch.h"
#include "parallel/comm/shard_groups.h"
#include "parallel/device/pinned_copy.h"
#include "tests/support/catch.h"
#include "tests/support/gpu_numbers.h"
#include "trainer/update/gradients.h"
#include "trainer/update/stochastic_rounding.h"
#include "trainer/update/trained_slabs.h"

using namespace moetune;

namespace {

at::Tensor normal(at::IntArrayRef shape, uint64_t seed) {
  return at::randn(shape, at::detail::createCPUGenerator(seed), at::TensorOptions(at::kFloat));
}

/// Working copies and masters behind three steps of weights in slabs and an adapter: of the first layer several pieces,
/// and tensors across their ends.
std::vector<at::Tensor> train(const std::string& kind, SlabTier weights, SlabTier gradients, SlabTier state,
                              bool stochastic) {
  Launch launch;
  launch.use_device(kind);
  const at::Device device = launch.device();
  Mesh mesh(launch, {1, 1, 1, 1});
  const ShardGroups shards(launch, mesh, ShardScope::kNone, /*uncut=*/true);
  WeightStore store(device);
  TrainedSlabs slabs(mesh, shards, store, weights);
  ParameterSet parameters(device, at::kBFloat16);
  uint64_t seed = 0;
  for (const int64_t layer : {0, 1, 2}) {
    const int64_t rows = layer == 0 ? HostWindow::kNumbers / 1024 + 7 : 35;
    for (const std::vector<int64_t>& shape : {std::vector<int64_t>{rows, 1024}, {333}, {501, 99}}) {
      ParameterInfo info;
      info.name = std::to_string(seed);
      info.layer = LayerId::block(layer);
      info.decays = shape.size() > 1;
      parameters.add(info, normal(shape, ++seed) * 0.01);
    }
    ParameterInfo adapter;
    adapter.name = "adapter";
    adapter.layer = LayerId::block(layer);
    adapter.role = Role::kAdapterB;
    parameters.add(adapter, normal({3, 777}, ++seed));
    slabs.take(parameters.of_layer(LayerId::block(layer)));
  }
  const Partition partition(parameters, mesh, slabs.groups());
  GradientReducer reducer(partition, mesh, gradients);
  OptimizerOptions options{2.0, {0.9, 0.95}, 1e-8, 0.1};
  options.tier = state;
  options.gradients = gradients;
  if (stochastic) options.rounding_seed = 5;
  Optimizer optimizer(partition, options);
  for (int64_t step = 1; step <= 3; ++step) {
    for (int64_t layer = 2; layer >= 0; --layer) {
      for (Parameter* parameter : parameters.of_layer(LayerId::block(layer))) {
        const at::Tensor gradient = normal(parameter->working.sizes(), 1000 * step + ++seed);
        parameter->add_gradient(gradient.to(device));
      }
      reducer.reduce(LayerId::block(layer));
    }
    reducer.global_norm(step);
    optimizer.step(1e-3 * static_cast<double>(step), step == 2 ? 0.5 : 1.0, reducer.gradients());
    for (const int64_t layer : {0, 1, 2}) optimizer.before_layer(LayerId::block(layer));
  }
  std::vector<at::Tensor> numbers;
  std::vector<int> uses;
  for (const int64_t layer : {0, 1, 2}) {
    for (const int slab : slabs.uses(LayerId::block(layer))) uses.push_back(slab);
  }
  store.schedule(uses);
  for (const int64_t layer : {0, 1, 2}) {
    slabs.use(LayerId::block(layer));
    for (Parameter* parameter : parameters.of_layer(LayerId::block(layer))) {
      numbers.push_back(parameter->working.detach().cpu().clone());
    }
    slabs.release(LayerId::block(layer));
  }
  for (const Optimizer::Shard& shard : optimizer.shards()) numbers.push_back(shard.master.cpu().clone());
  return numbers;
}

}  // namespace

TEST_CASE("AdamW of weights and gradients on CUDA has the bits of the CPU's", "[optimizer]") {
  for (const bool stochastic : {false, true}) {
    const std::vector<at::Tensor> wanted =
        train("cpu", SlabTier::kDevice, SlabTier::kHost, SlabTier::kHost, stochastic);
    for (const SlabTier weights : {SlabTier::kDevice, SlabTier::kHost}) {
      for (const SlabTier gradients : {SlabTier::kDevice, SlabTier::kHost}) {
        INFO("weights' tier " << static_cast<int>(weights) << ", gradients' " << static_cast<int>(gradients));
        const std::vector<at::Tensor> found = train("cuda", weights, gradients, SlabTier::kHost, stochastic);
        REQUIRE(found.size() == wanted.size());
        for (size_t i = 0; i < found.size(); ++i) {
          INFO("tensor " << i);
          CHECK(at::equal(found[i], wanted[i]));
        }
      }
    }
  }
}

TEST_CASE("AdamW on CUDA is the CPU's but for rounding", "[optimizer]") {
  const std::vector<at::Tensor> wanted = train("cpu", SlabTier::kDevice, SlabTier::kHost, SlabTier::kHost, false);
  for (const SlabTier weights : {SlabTier::kDevice, SlabTier::kHost}) {
    const std::vector<at::Tensor> found = train("cuda", weights, SlabTier::kDevice, SlabTier::kDevice, false);
    REQUIRE(found.size() == wanted.size());
    for (size_t i = 0; i < found.size(); ++i) {
      INFO("tensor " << i << ", weights' tier " << static_cast<int>(weights));
      const bool working = found[i].scalar_type() == at::kBFloat16;
      // A master within a rounding of fp32, of numbers to about 0.05 and steps of 1e-3; its copy in bf16 may fall to
      // the neighbour.
      CHECK(distance_fp64(found[i], wanted[i].to(at::kDouble)) < (working ? 3e-3 : 1e-6));
    }
  }
}

TEST_CASE("stochastic rounding on CUDA has the bits of the CPU's", "[optimizer]") {
  at::Tensor numbers = random_normal({100'003}, 1, at::kFloat);
  numbers[5] = INFINITY;
  numbers[6] = NAN;
  for (const int64_t first : {int64_t{0}, (int64_t{1} << 32) - 50'000}) {
    const at::Tensor here = at::empty({100'003}, at::kBFloat16), there = here.cuda();
    round_stochastically(numbers, here, 77, first);
    round_stochastically(numbers.cuda(), there, 77, first);
    CHECK(at::equal(here.view(at::kShort), there.cpu().view(at::kShort)));
  }
}

TEST_CASE("bytes of pinned memory come to a GPU, wherever they begin", "[pinned_copy]") {
  const at::Tensor all = at::randint(256, {1'000'003}, at::kByte).pin_memory();
  for (const auto& [first, count] :
       std::vector<std::pair<int64_t, int64_t>>{{0, 1'000'003}, {16, 4096}, {1, 77'777}, {32, 15}, {5, 0}}) {
    const at::Tensor to = at::full({count + 2}, 7, at::TensorOptions(at::kByte).device(at::kCUDA));
    copy_from_pinned(to.narrow(0, 0, count), all.narrow(0, first, count));
    CHECK(at::equal(to.narrow(0, 0, count).cpu(), all.narrow(0, first, count)));
    CHECK((to.narrow(0, count, 2) == 7).all().item<bool>());
  }
}
