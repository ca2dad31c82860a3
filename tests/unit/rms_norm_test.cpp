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

TEST_CASE("columns of a wider matrix are normalised where they lie", "[rms_norm]") {
  const at::Tensor wide = random_normal({5, 9}, 1), weight = leaf(random_normal({6}, 2)), d = random_normal({5, 6}, 3);
  const at::Tensor x = wide.narrow(1, 2, 6).detach().requires_grad_();
  const at::Tensor expected = weight * (x / (x.square().mean(-1, true) + 1e-6).sqrt()), y = rms_norm(x, weight, 1e-6);
  CHECK(distance(y, expected) < 1e-14);
  const auto got = torch::autograd::grad({y}, {x, weight}, {d}),
             wanted = torch::autograd::grad({expected}, {x, weight}, {d});
  for (size_t i = 0; i < 2; ++i) CHECK(distance(got[i], wanted[i]) < 1e-13);
}

TEST_CASE("a sum and its norm have the gradients of both ways out", "[rms_norm]") {
  for (const int64_t T : {5, 0}) {
    const at::Tensor x = leaf(random_normal({T, 8}, 1)), added = leaf(random_normal({T, 8}, 2)),
                     weight = leaf(random_normal({8}, 3));
    const at::Tensor d_sum = random_normal({T, 8}, 4), d_normed = random_normal({T, 8}, 5);
    const NormedSum got = add_rms_norm(x, added, weight, 0.01);
    const at::Tensor sum = x + added, normed = weight * (sum / (sum.square().mean(-1, true) + 0.01).sqrt());
    CHECK(at::equal(got.sum, sum));
    CHECK(got.normed.sizes() == normed.sizes());
    if (T > 0) CHECK(distance(got.normed, normed) < 1e-14);
    // Where the sum was kept, what it is made of is not read.
    const at::Tensor unread = at::full({T, 8}, NAN, at::kDouble);
    const NormedSum known = add_rms_norm(leaf(unread), leaf(unread), weight, 0.01, sum.detach());
    CHECK(at::equal(known.sum, got.sum));
    CHECK(at::equal(known.normed, got.normed));
    const std::vector<at::Tensor> inputs{x, added, weight};
    const auto gradients = [&](const std::vector<at::Tensor>& outputs, const std::vector<at::Tensor>& d) {
      return torch::autograd::grad(outputs, inputs, d, /*retain_graph=*/true, /*create_graph=*/false,
                                   /*allow_unused=*/true);
    };
    const std::vector<std::vector<at::Tensor>> cases[2] = {
        {gradients({got.sum, got.normed}, {d_sum, d_normed}), gradients({got.normed}, {d_normed}),
         gradients({got.sum}, {d_sum})},
        {gradients({sum, normed}, {d_sum, d_normed}), gradients({normed}, {d_normed}), gradients({sum}, {d_sum})}};
    for (size_t i = 0; i < 3; ++i) {
      INFO("case " << i << ", " << T << " rows");
      for (size_t k = 0; k < 3; ++k) {
        REQUIRE(cases[0][i][k].defined() == cases[1][i][k].defined());
        if (!cases[1][i][k].defined()) continue;
        REQUIRE(cases[0][i][k].sizes() == cases[1][i][k].sizes());
        if (T > 0) CHECK(distance(cases[0][i][k], cases[1][i][k]) < 1e-13);
      }
    }
  }
}
