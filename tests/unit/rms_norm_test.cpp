#include "tests/support/catch.h"

#include <torch/csrc/autograd/autograd.h>

#include "moe/rms_norm.h"
#include "tests/support/numbers.h"

using namespace moetune;

TEST_CASE("RMSNorm and its gradients equal the plain expression", "[rms_norm]") {
  for (const std::vector<int64_t>& shape :
       {std::vector<int64_t>{5, 8}, std::vector<int64_t>{2, 3, 8}, std::vector<int64_t>{0, 8}}) {
    const at::Tensor x = leaf(random_normal(shape, 1) * 0.1), weight = leaf(random_normal({8}, 2)),
                     d = random_normal(shape, 3);
    const at::Tensor expected = weight * (x / (x.square().mean(-1, true) + 0.01).sqrt());
    const at::Tensor y = rms_norm(x, weight, 0.01);
    REQUIRE(y.sizes() == x.sizes());
    const auto got = torch::autograd::grad({y}, {x, weight}, {d}),
               wanted = torch::autograd::grad({expected}, {x, weight}, {d});
    CHECK(got[0].sizes() == x.sizes());
    if (x.numel() == 0) continue;
    CHECK(distance(y, expected) < 1e-14);
    CHECK(distance(got[0], wanted[0]) < 1e-13);
    CHECK(distance(got[1], wanted[1]) < 1e-13);
  }
}

TEST_CASE("bf16 is normalised in fp32, rounded, then scaled", "[rms_norm]") {
  const at::Tensor x = random_normal({6, 32}, 1, at::kBFloat16) * 3, weight = random_normal({32}, 2, at::kBFloat16);
  const at::Tensor wide = x.to(at::kFloat);
  const at::Tensor normed = (wide * (wide.square().mean(-1, true) + 1e-6).rsqrt()).to(at::kBFloat16);
  CHECK(at::equal(rms_norm(x, weight, 1e-6), weight * normed));
}
