#include "tests/support/catch.h"

#include "lora/adapters/parameter.h"
#include "parallel/base/error.h"
#include "tests/support/message_of.h"
#include "tests/support/numbers.h"

using namespace moetune;

TEST_CASE("of bf16 gradients those of layers' matrices alone add up in bf16", "[parameter]") {
  ParameterSet parameters(at::kCPU, at::kBFloat16, at::kBFloat16);
  const auto dtype_of = [&](LayerId layer, Role role, bool decays) {
    ParameterInfo info;
    info.layer = layer;
    info.role = role;
    info.decays = decays;
    Parameter& parameter = parameters.add(info, at::ones({2, 3}));
    parameter.add_gradient(at::full({2, 3}, 256.0f));
    parameter.add_gradient(at::ones({2, 3}));  // 257 is no bf16 number
    CHECK(parameter.gradient()[0][0].item<double>() == (parameter.gradient().element_size() == 2 ? 256.0 : 257.0));
    parameter.clear_gradient();
    CHECK(parameter.gradient().element_size() == (parameter.gradient().scalar_type() == at::kFloat ? 4 : 2));
    return parameter.gradient().scalar_type();
  };
  CHECK(dtype_of(LayerId::block(3), Role::kWeight, true) == at::kBFloat16);
  CHECK(dtype_of(LayerId::mtp(9), Role::kWeight, true) == at::kBFloat16);
  CHECK(dtype_of(LayerId::block(3), Role::kWeight, false) == at::kFloat);
  CHECK(dtype_of(LayerId::block(3), Role::kAdapterB, true) == at::kFloat);
  CHECK(dtype_of(LayerId::embedding(), Role::kWeight, true) == at::kFloat);
  CHECK(dtype_of(LayerId::turn(9), Role::kWeight, true) == at::kFloat);
}

TEST_CASE("masters are wide, working copies are leaves that keep their place", "[parameter]") {
  for (const at::ScalarType compute : {at::kBFloat16, at::kFloat, at::kDouble}) {
    ParameterSet parameters(at::kCPU, compute);
    const at::Tensor initial = random_normal({3, 4}, 1);
    Parameter& parameter = parameters.add({}, initial);
    CHECK(parameter.master().scalar_type() == (compute == at::kDouble ? at::kDouble : at::kFloat));
    CHECK(at::equal(parameter.master(), initial.to(parameter.master().scalar_type())));
    CHECK(parameter.working.is_leaf());
    CHECK(parameter.working.requires_grad());
    CHECK(at::equal(parameter.working, parameter.master().to(compute)));
    const at::Tensor handle = parameter.working;
    parameter.master().add_(1);
    CHECK(!at::equal(handle, parameter.master().to(compute)));
    parameter.refresh_working();
    CHECK(at::equal(handle, parameter.master().to(compute)));
    CHECK(handle.is_same(parameter.working));
    CHECK(at::equal(initial, random_normal({3, 4}, 1)));
    parameter.release_master();
    CHECK(contains(message_of<InternalError>([&] { parameter.master(); }), "the optimizer holds the master"));
    CHECK(parameter.numel() == 12);
    CHECK(parameter.wide_dtype() == (compute == at::kDouble ? at::kDouble : at::kFloat));
  }
}

TEST_CASE("a step's gradients add up in fp32 and the next step starts from zero", "[parameter]") {
  ParameterSet parameters(at::kCPU, at::kBFloat16);
  Parameter& parameter = parameters.add({}, at::zeros({2}));
  CHECK(!parameter.has_gradient());
  CHECK(at::equal(parameter.gradient(), at::zeros({2})));
  parameter.clear_gradient();
  // 256 + 1 is no bf16 number.
  parameter.add_gradient(at::tensor({256.0, 1.0}).to(at::kBFloat16));
  parameter.add_gradient(at::Tensor());
  parameter.add_gradient(at::tensor({1.0, 2.0}).to(at::kBFloat16));
  CHECK(at::equal(parameter.gradient(), at::tensor({257.0, 3.0}).to(at::kFloat)));
  parameter.gradient().add_(1);
  CHECK(at::equal(parameter.gradient(), at::tensor({258.0, 4.0}).to(at::kFloat)));
  parameter.clear_gradient();
  const at::Tensor given = at::tensor({5.0, 6.0}).to(at::kFloat);
  parameter.add_gradient(given);
  CHECK(at::equal(parameter.gradient(), given));
  parameter.gradient().add_(1);
  CHECK(given[0].item<double>() == 5.0);
  CHECK(parameter.has_gradient());
  parameter.clear_gradient();
  CHECK(!parameter.has_gradient());
  CHECK(at::equal(parameter.gradient(), at::zeros({2})));
}

TEST_CASE("layers are found by number", "[parameter]") {
  ParameterSet parameters(at::kCPU, at::kFloat);
  CHECK(parameters.lowest_layer(LayerId::turn(8)) == LayerId::turn(8));
  for (const int64_t layer : {3, 1, 3}) {
    ParameterInfo info;
    info.layer = LayerId::block(layer);
    parameters.add(info, at::zeros({1}));
  }
  CHECK(parameters.lowest_layer(LayerId::turn(8)) == LayerId::block(1));
  CHECK(parameters.of_layer(LayerId::block(3)) == std::vector<Parameter*>{&parameters.all()[0], &parameters.all()[2]});
  CHECK(parameters.of_layer(LayerId::block(2)).empty());
}
