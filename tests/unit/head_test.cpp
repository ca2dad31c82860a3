// The head in chunks against plain cross-entropy over all rows.
#include "tests/support/catch.h"

#include <torch/csrc/autograd/autograd.h>

#include "moe/head.h"
#include "tests/support/numbers.h"

using namespace moetune;

namespace {

constexpr int64_t T = 11, D = 8, V = 20;
constexpr double kEps = 1e-5;

at::Tensor plain_norm(const at::Tensor& x, const at::Tensor& weight) {
  return x / (x.square().mean(-1, true) + kEps).sqrt() * weight;
}

}  // namespace

TEST_CASE("loss and gradients of the head do not depend on its chunks", "[head]") {
  const at::Tensor x = leaf(random_normal({T, D}, 1)), row = long_tensor({1, 2, 4, 5, 6, 9, 10}),
                   target = long_tensor({3, 0, 19, 3, 3, 7, 11});
  const double scale = 0.25;
  for (const int64_t chunk : {1, 3, 7, 100}) {
    INFO("chunk of " << chunk);
    ParameterSet parameters(at::kCPU, at::kDouble);
    Parameter& norm = parameters.add({}, random_normal({D}, 2));
    Parameter& weight = parameters.add({}, random_normal({V, D}, 3));
    const at::Tensor logits = plain_norm(x, norm.working).matmul(weight.working.t());
    const at::Tensor expected = at::cross_entropy_loss(logits.index_select(0, row), target, {}, at::Reduction::Sum);
    const auto wanted = torch::autograd::grad({expected * scale}, {x, norm.working, weight.working});

    Head trained({norm.working, weight.working, &norm, &weight}, V, kEps, chunk);
    const HeadResult result = trained.loss(x.detach(), row, target, scale, true);
    CHECK(result.loss_sum.item<double>() == Approx(expected.item<double>()).epsilon(1e-13));
    CHECK(distance(result.d_x_UD, wanted[0]) < 1e-13);
    CHECK(distance(norm.gradient(), wanted[1]) < 1e-13);
    CHECK(distance(weight.gradient(), wanted[2]) < 1e-13);
    CHECK(distance(trained.logits(x.detach()), logits) < 1e-13);

    Head frozen({norm.master(), weight.master()}, V, kEps, chunk);
    CHECK(distance(frozen.loss(x.detach(), row, target, scale, true).d_x_UD, wanted[0]) < 1e-13);
    const HeadResult forward_only = frozen.loss(x.detach(), row, target, 0.0, false);
    CHECK(forward_only.loss_sum.item<double>() == Approx(expected.item<double>()).epsilon(1e-13));
    CHECK(!forward_only.d_x_UD.defined());
  }
}

TEST_CASE("a target's weight multiplies its loss and its gradients", "[head]") {
  const at::Tensor x = leaf(random_normal({T, D}, 1)), row = long_tensor({1, 2, 4, 5, 6, 9, 10}),
                   target = long_tensor({3, 0, 19, 3, 3, 7, 11});
  const at::Tensor weight_n = at::tensor({1.0F, 0.5F, 0.0F, 2.0F, 0.25F, 1.0F, 3.0F});
  for (const int64_t chunk : {3, 100}) {
    ParameterSet parameters(at::kCPU, at::kDouble);
    Parameter& norm = parameters.add({}, random_normal({D}, 2));
    Parameter& weight = parameters.add({}, random_normal({V, D}, 3));
    const at::Tensor logits = plain_norm(x, norm.working).matmul(weight.working.t());
    const at::Tensor each = at::cross_entropy_loss(logits.index_select(0, row), target, {}, at::Reduction::None);
    const at::Tensor expected = (each * weight_n.to(at::kDouble)).sum();
    const auto wanted = torch::autograd::grad({expected * 0.25}, {x, norm.working, weight.working});
    Head head({norm.working, weight.working, &norm, &weight}, V, kEps, chunk);
    const HeadResult result = head.loss(x.detach(), row, target, 0.25, true, weight_n);
    CHECK(result.loss_sum.item<double>() == Approx(expected.item<double>()).epsilon(1e-13));
    CHECK(distance(result.d_x_UD, wanted[0]) < 1e-13);
    CHECK(distance(norm.gradient(), wanted[1]) < 1e-13);
    CHECK(distance(weight.gradient(), wanted[2]) < 1e-13);
    // Weights of 1 are none, to the last bit.
    const HeadResult plain = head.loss(x.detach(), row, target, 0.25, true);
    const HeadResult ones = head.loss(x.detach(), row, target, 0.25, true, at::ones({7}));
    CHECK(at::equal(plain.loss_sum, ones.loss_sum));
    CHECK(at::equal(plain.d_x_UD, ones.d_x_UD));
  }
}

TEST_CASE("rows without any target cost nothing and give zero", "[head]") {
  Head head({at::ones({D}), at::ones({V, D})}, V, kEps, 4);
  for (const int64_t rows : {T, int64_t{0}}) {
    const HeadResult result = head.loss(at::ones({rows, D}), long_tensor({}), long_tensor({}), 1.0, true);
    CHECK(result.loss_sum.item<double>() == 0.0);
    CHECK(at::equal(result.d_x_UD, at::zeros({rows, D})));
  }
}
