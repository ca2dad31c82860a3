// The wide product, and the bf16 numbers that fp32 ones are sums of.
#include "moe/wide_product.h"

#include <torch/csrc/autograd/autograd.h>

#include "tests/support/catch.h"
#include "tests/support/numbers.h"

using namespace moetune;

TEST_CASE("three bf16 numbers hold an fp32 number, two of them all but 2^-16", "[wide_product]") {
  const at::Tensor x =
      at::cat({random_normal({1000}, 1, at::kFloat) * at::exp(random_normal({1000}, 2, at::kFloat) * 5),
               at::tensor({0.0F, 1.0F, -3.4e30F, 1e-30F, 16777215.0F, 0.1F})});
  const std::vector<at::Tensor> parts = bf16_parts(x, 3);
  REQUIRE(parts.size() == 3);
  at::Tensor sum = at::zeros_like(x, at::kDouble);
  for (int64_t count = 1; count <= 3; ++count) {
    CHECK(parts[count - 1].scalar_type() == at::kBFloat16);
    sum = sum + parts[count - 1].to(at::kDouble);
    const at::Tensor error = (sum - x.to(at::kDouble)).abs() / x.to(at::kDouble).abs().clamp_min(1e-300);
    CHECK(error.max().item<double>() <= std::pow(2.0, count == 3 ? -24.0 : -8.0 * static_cast<double>(count)));
  }
  CHECK(at::equal(sum.to(at::kFloat), x));
}

TEST_CASE("a wide product is that of its operands in fp32", "[wide_product]") {
  const at::Tensor x = leaf(random_normal({6, 40}, 1, at::kBFloat16)), d = random_normal({6, 5}, 3, at::kFloat);
  for (const auto dtype : {at::kBFloat16, at::kFloat}) {
    const at::Tensor weight = leaf(random_normal({5, 40}, 2, dtype));
    const at::Tensor y = wide_linear(x, weight);
    CHECK(y.scalar_type() == at::kFloat);
    CHECK(distance(y, x.to(at::kDouble).matmul(weight.to(at::kDouble).t())) < 1e-6);
    const auto got = torch::autograd::grad({y}, {x, weight}, {d});
    CHECK(got[0].scalar_type() == at::kBFloat16);
    CHECK(got[1].scalar_type() == dtype);
    CHECK(distance(got[0], d.to(at::kDouble).matmul(weight.to(at::kDouble))) < 4e-3);
    CHECK(distance(got[1], d.to(at::kDouble).t().matmul(x.to(at::kDouble))) < (dtype == at::kFloat ? 1e-6 : 4e-3));
  }
  CHECK(wide_linear(random_normal({2, 3}, 1), random_normal({4, 3}, 2)).scalar_type() == at::kDouble);
}
