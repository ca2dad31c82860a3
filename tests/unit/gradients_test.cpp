// The reducer on one rank: each parameter enters the norm once, and what is not finite stops the step.
#include "tests/support/catch.h"

#include <cmath>

#include "parallel/base/error.h"
#include "parallel/comm/launch.h"
#include "tests/support/message_of.h"
#include "tests/support/numbers.h"
#include "trainer/update/gradients.h"

using namespace moetune;

namespace {

ParameterInfo info_of(LayerId layer, Replicas replicas) {
  ParameterInfo info;
  info.layer = layer;
  info.replicas = replicas;
  return info;
}

}  // namespace

TEST_CASE("the norm counts every parameter once and starts anew each step", "[gradients]") {
  Launch launch;
  Mesh mesh(launch, {1, 1, 1, 1});
  ParameterSet parameters(at::kCPU, at::kFloat);
  double squares = 0.0;
  for (int i = 0; i < 6; ++i) {
    Parameter& parameter =
        parameters.add(info_of(LayerId::block(i / 3), i % 3 == 0 ? Replicas::kExpertReplicas : Replicas::kEverywhere),
                       at::zeros({2, 3}));
    if (i == 5) continue;  // nothing was added: zero
    const at::Tensor gradient = random_normal({2, 3}, i, at::kFloat);
    parameter.add_gradient(gradient);
    squares += std::pow(gradient.to(at::kDouble).norm().item<double>(), 2);
  }
  Partition partition(parameters, mesh);
  REQUIRE(partition.groups().size() == 4);
  GradientReducer reducer(partition, mesh, SlabTier::kHost);
  const at::Tensor of_0 = parameters.all()[0].gradient().clone(), of_4 = parameters.all()[4].gradient().clone();
  reducer.reduce(LayerId::block(1));
  reducer.reduce(LayerId::block(0));
  reducer.reduce(LayerId::block(2));  // no parameters
  CHECK(!parameters.all()[0].has_gradient());
  CHECK(reducer.global_norm(0) == Approx(std::sqrt(squares)).epsilon(1e-12));
  // Weights begin at multiples of 128 numbers, behind zeros.
  CHECK(at::equal(reducer.gradients()[1], at::cat({of_0.flatten(), at::zeros({122})})));
  CHECK(at::equal(reducer.gradients()[2], at::cat({of_4.flatten(), at::zeros({122 + 128})})));
  CHECK(reducer.global_norm(1) == 0.0);
  parameters.all()[0].gradient().add_(1);
  reducer.reduce(LayerId::block(0));
  reducer.forget();
  CHECK(reducer.global_norm(1) == 0.0);

  const double bad = GENERATE(as<double>{}, NAN, INFINITY);
  parameters.all()[4].gradient()[0][1] = bad;
  reducer.reduce(LayerId::block(1));
  CHECK(contains(message_of<NonFiniteError>([&] { reducer.global_norm(9); }),
                 "step 9: the gradient of rank 0 is not finite"));
}

TEST_CASE("a gradient whose squares overflow fp32 has a finite norm", "[gradients]") {
  Launch launch;
  Mesh mesh(launch, {1, 1, 1, 1});
  ParameterSet parameters(at::kCPU, at::kFloat);
  parameters.add(info_of(LayerId::block(0), Replicas::kEverywhere), at::zeros({1})).add_gradient(at::full({1}, 1e30f));
  Partition partition(parameters, mesh);
  GradientReducer reducer(partition, mesh, SlabTier::kHost);
  reducer.reduce(LayerId::block(0));
  CHECK(reducer.global_norm(0) == Approx(1e30).epsilon(1e-6));
}
