// Gradients, masters and moments in parts over the ranks: what comes back is what one rank computes, with and without
// overlap.
#include "trainer/update/optimizer.h"

#include <cmath>

#include "parallel/base/error.h"
#include "tests/support/catch.h"
#include "tests/support/dist.h"
#include "tests/support/message_of.h"
#include "trainer/update/gradients.h"

using namespace moetune;

namespace {

/// The embedding, then blocks.
LayerId layer_at(int64_t number) { return number < 0 ? LayerId::embedding() : LayerId::block(number); }

ParameterInfo info_of(int64_t layer, Replicas replicas, Role role = Role::kAdapterA) {
  ParameterInfo info;
  info.name = str("layer ", layer);
  info.layer = layer_at(layer);
  info.role = role;
  info.replicas = replicas;
  return info;
}

/// Small whole numbers, the same on every rank that holds copies.
double initial(int64_t tensor, int64_t i) { return static_cast<double>((tensor * 5 + i * 3) % 7) - 3.0; }

/// What rank r adds to number i of a tensor in a step; a multiple of 1/4, so that sums are exact.
double gradient(int64_t tensor, int64_t i, int64_t rank, int64_t step) {
  return static_cast<double>((tensor + 2 * i + 3 * rank + step) % 9 - 4) / 4.0;
}

struct Held {
  int64_t layer, numel;
  Replicas replicas;
  Role role = Role::kAdapterA;
  bool decays = true;
};

// Fewer numbers than ranks; B before A; a layer of both kinds; a tensor that no rank has gradients for; tensors across
// shard ends; what does not decay before and between what does.
const std::vector<Held> kHeld = {{-1, 1, Replicas::kEverywhere},
                                 {0, 5, Replicas::kEverywhere, Role::kAdapterB},
                                 {0, 8, Replicas::kEverywhere},
                                 {1, 3, Replicas::kEverywhere},
                                 {1, 7, Replicas::kExpertReplicas},
                                 {1, 2, Replicas::kExpertReplicas, Role::kAdapterB},
                                 {3, 6, Replicas::kEverywhere},
                                 {3, 4, Replicas::kEverywhere, Role::kWeight, /*decays=*/false},
                                 {3, 9, Replicas::kEverywhere, Role::kWeight},
                                 {1, 5, Replicas::kExpertReplicas, Role::kWeight, /*decays=*/false}};
constexpr size_t kWithoutGradient = 3;

/// Two steps; returns the working copies.
std::vector<at::Tensor> train(Mesh& mesh, bool overlap, SlabTier gradients, SlabTier state = SlabTier::kHost) {
  const Launch& launch = test_launch();
  const MeshShape& shape = mesh.shape();
  ParameterSet parameters(launch.device(), at::kDouble);
  for (size_t tensor = 0; tensor < kHeld.size(); ++tensor) {
    std::vector<double> numbers;
    for (int64_t i = 0; i < kHeld[tensor].numel; ++i) numbers.push_back(initial(static_cast<int64_t>(tensor), i));
    ParameterInfo info = info_of(kHeld[tensor].layer, kHeld[tensor].replicas, kHeld[tensor].role);
    info.decays = kHeld[tensor].decays;
    parameters.add(info, at::tensor(numbers, at::kDouble));
  }
  const Partition partition(parameters, mesh);
  GradientReducer reducer(partition, mesh, gradients);
  Optimizer optimizer(partition, {4.0, {0.8, 0.95}, 1e-3, 0.1, overlap, state, gradients});
  for (int64_t step = 1; step <= 2; ++step) {
    for (const int64_t layer : {-1, 0, 1, 2, 3}) optimizer.before_layer(layer_at(layer));
    double squares = 0.0;
    // The norm over the model: what all hold once, experts of every ep.
    for (int64_t layer = 3; layer >= -1; --layer) {
      for (size_t tensor = 0; tensor < kHeld.size(); ++tensor) {
        const Held& held = kHeld[tensor];
        if (held.layer != layer || tensor == kWithoutGradient) continue;
        const bool experts = held.replicas == Replicas::kExpertReplicas;
        std::vector<double> own;
        for (int64_t i = 0; i < held.numel; ++i) {
          own.push_back(gradient(static_cast<int64_t>(tensor), i, launch.rank(), step));
          for (int64_t ep = 0; ep < (experts ? shape.ep : 1); ++ep) {
            double sum = 0.0;
            for (int64_t rank = 0; rank < shape.num_ranks(); ++rank) {
              if (!experts || coordinates_of(shape, rank).ep == ep) {
                sum += gradient(static_cast<int64_t>(tensor), i, rank, step);
              }
            }
            squares += sum * sum;
          }
        }
        parameters.all()[tensor].add_gradient(test_tensor(own, at::kDouble));
      }
      reducer.reduce(layer_at(layer));
    }
    CHECK(reducer.global_norm(step) == Approx(std::sqrt(squares)).epsilon(1e-14));
    optimizer.step(0.5, 0.25, reducer.gradients());
  }
  optimizer.flush();
  std::vector<at::Tensor> working;
  for (const Parameter& parameter : parameters.all()) working.push_back(parameter.working.detach().cpu().clone());
  return working;
}

/// AdamW by its formula on one number.
double adamw(int64_t tensor, int64_t i, const MeshShape& shape) {
  const Held& held = kHeld[static_cast<size_t>(tensor)];
  double p = initial(tensor, i), m = 0.0, v = 0.0;
  const double lr = held.role == Role::kAdapterB ? 2.0 : 0.5;
  for (int64_t step = 1; step <= 2; ++step) {
    double g = 0.0;
    for (int64_t rank = 0; rank < shape.num_ranks() && tensor != static_cast<int64_t>(kWithoutGradient); ++rank) {
      const bool copies = held.replicas == Replicas::kEverywhere ||
                          coordinates_of(shape, rank).ep == coordinates_of(shape, test_launch().rank()).ep;
      if (copies) g += 0.25 * gradient(tensor, i, rank, step);
    }
    m = 0.8 * m + 0.2 * g;
    v = 0.95 * v + 0.05 * g * g;
    const double m_hat = m / (1 - std::pow(0.8, step)), v_hat = v / (1 - std::pow(0.95, step));
    p = p * (1 - lr * (held.decays ? 0.1 : 0.0)) - lr * m_hat / (std::sqrt(v_hat) + 1e-3);
  }
  return p;
}

}  // namespace

TEST_CASE("partitioned AdamW is AdamW on every mesh, overlapped or not, wherever the gradients lie",
          "[optimizer][ranks8]") {
  const int64_t P = test_launch().world_size();
  for (const int64_t ep : {int64_t{1}, int64_t{2}, P}) {
    if (P % ep != 0) continue;
    const MeshShape shape{1, P / ep, ep, 1};
    Mesh mesh(test_launch(), shape);
    const std::vector<at::Tensor> overlapped = train(mesh, true, SlabTier::kDevice),
                                  waited = train(mesh, false, SlabTier::kHost),
                                  there = train(mesh, true, SlabTier::kDevice, SlabTier::kDevice);
    for (size_t tensor = 0; tensor < kHeld.size(); ++tensor) {
      INFO(to_string(shape) << ", tensor " << tensor);
      CHECK(at::equal(overlapped[tensor], waited[tensor]));
      CHECK(at::allclose(there[tensor], waited[tensor], 1e-12, 1e-14));
      for (int64_t i = 0; i < kHeld[tensor].numel; ++i) {
        CHECK(overlapped[tensor][i].item<double>() ==
              Approx(adamw(static_cast<int64_t>(tensor), i, shape)).epsilon(1e-12).margin(1e-14));
      }
    }
  }
}

TEST_CASE("a rank keeps its own part of the state and of nothing else", "[optimizer]") {
  Launch& launch = test_launch();
  const int64_t P = launch.world_size();
  Mesh mesh(launch, {1, P, 1, 1});
  ParameterSet parameters(launch.device(), at::kBFloat16);
  parameters.add(info_of(0, Replicas::kEverywhere), at::arange(10 * P - 1, at::kFloat));
  const Partition partition(parameters, mesh);
  const FlatGroup& group = partition.groups()[0];
  Optimizer optimizer(partition, {});
  CHECK(optimizer.shards()[0].master.numel() == 10);
  CHECK(group.own_pieces().front().count == (launch.rank() == P - 1 ? 9 : 10));
  CHECK(optimizer.shards()[0].master[0].item<float>() == 10.0F * static_cast<float>(launch.rank()));
  CHECK_THROWS_AS(parameters.all()[0].master(), InternalError);
  // A gradient crosses once as fp32 parts, new values once as bf16 parts.
  GradientReducer reducer(partition, mesh, SlabTier::kHost);
  const int64_t before = group.ranks().bytes_sent();
  parameters.all()[0].gradient().add_(1);
  reducer.reduce(LayerId::block(0));
  CHECK(group.ranks().bytes_sent() - before == (P - 1) * 40);
  // waits for the device
  CHECK(reducer.global_norm(1) == Approx(static_cast<double>(P) * std::sqrt(static_cast<double>(10 * P - 1))));
  CHECK(to_vector<float>(reducer.gradients()[0])[0] == static_cast<float>(P));
  optimizer.step(0.0, 1.0, reducer.gradients());
  optimizer.flush();
  CHECK(group.ranks().bytes_sent() - before == (P - 1) * 60);
}

TEST_CASE("a number that is not finite is told with its rank", "[optimizer]") {
  Launch& launch = test_launch();
  Mesh mesh(launch, {1, launch.world_size(), 1, 1});
  ParameterSet parameters(launch.device(), at::kFloat);
  parameters.add(info_of(0, Replicas::kEverywhere), at::zeros({5}));
  const Partition partition(parameters, mesh);
  GradientReducer reducer(partition, mesh, SlabTier::kHost);
  if (launch.rank() == 1) parameters.all()[0].gradient()[4] = NAN;
  reducer.reduce(LayerId::block(0));
  CHECK(contains(message_of<NonFiniteError>([&] { reducer.global_norm(6); }),
                 "step 6: the gradient of rank 1 is not finite; nothing was updated"));
}
