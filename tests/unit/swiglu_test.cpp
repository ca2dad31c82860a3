// SwiGLU against its formula, differentiated by torch's autograd, and what its graph keeps.
#include "moe/swiglu.h"

#include <torch/csrc/autograd/autograd.h>

#include "tests/support/catch.h"
#include "tests/support/numbers.h"

using namespace moetune;

TEST_CASE("SwiGLU and its gradients equal the formula", "[swiglu]") {
  const at::Tensor wide = random_normal({7, 12}, 1) * 3;
  const at::Tensor gate = wide.narrow(1, 0, 5).detach().requires_grad_(),
                   up = wide.narrow(1, 6, 5).detach().requires_grad_(), d = random_normal({7, 5}, 2);
  const at::Tensor h = swiglu(gate, up), expected = gate / (1 + (-gate).exp()) * up;
  CHECK(distance(h, expected) < 1e-15);
  const auto got = torch::autograd::grad({h}, {gate, up}, {d}),
             wanted = torch::autograd::grad({expected}, {gate, up}, {d});
  for (size_t i = 0; i < 2; ++i) CHECK(distance(got[i], wanted[i]) < 1e-14);
}

TEST_CASE("SwiGLU keeps its inputs and nothing else", "[swiglu]") {
  const at::Tensor gate = leaf(random_normal({4, 3}, 1)), up = leaf(random_normal({4, 3}, 2));
  const auto owners = gate.storage().use_count();
  at::Tensor h = swiglu(gate, up);
  CHECK(gate.storage().use_count() == owners);  // the variable itself, not a copy of it
  const std::weak_ptr<torch::autograd::Node> node = h.grad_fn();
  const at::Tensor result = h.detach();
  h = at::Tensor();
  CHECK(node.expired());
  CHECK(result.storage().use_count() == 1);
}

TEST_CASE("SwiGLU of no rows", "[swiglu]") {
  const at::Tensor gate = leaf(at::zeros({0, 3})), up = leaf(at::zeros({0, 3}));
  const at::Tensor h = swiglu(gate, up);
  CHECK(h.sizes() == at::IntArrayRef({0, 3}));
  CHECK(torch::autograd::grad({h}, {gate}, {at::zeros({0, 3})})[0].sizes() == at::IntArrayRef({0, 3}));
}
