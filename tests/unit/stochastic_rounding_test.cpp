// Rounding by chance: to a neighbour, right on average, the same bits whatever the cut.
#include "trainer/update/stochastic_rounding.h"

#include <ATen/ATen.h>

#include <cmath>
#include <limits>

#include "tests/support/catch.h"
#include "tests/support/numbers.h"

using namespace moetune;

namespace {

at::Tensor rounded(const at::Tensor& numbers, uint64_t key, int64_t first = 0) {
  at::Tensor result = at::empty(numbers.sizes(), at::kBFloat16);
  round_stochastically(numbers, result, key, first);
  return result;
}

}  // namespace

TEST_CASE("rounding by chance is right on average and goes to a neighbour", "[stochastic_rounding]") {
  constexpr int64_t kDraws = 1 << 16;
  // bf16 near 1 has steps of 2^-7, near -3 of 2^-6.
  for (const auto& [number, lower, step] :
       {std::tuple{1.0 + 0.3 / 128, 1.0, 1.0 / 128}, std::tuple{-3.0 - 0.9 / 64, -3.0 - 1.0 / 64, 1.0 / 64}}) {
    INFO(number);
    const at::Tensor all = rounded(at::full({kDraws}, number, at::kFloat), 7).to(at::kDouble);
    const double part = (number - lower) / step;
    CHECK(all.eq(lower).logical_or(all.eq(lower + step)).all().item<bool>());
    // Five standard deviations of a mean of so many draws.
    CHECK(std::abs((all.mean().item<double>() - lower) / step - part) < 5 * std::sqrt(part * (1 - part) / kDraws));
  }
}

TEST_CASE("what bf16 holds stays, and what is not finite too", "[stochastic_rounding]") {
  const at::Tensor held = random_normal({4096}, 3).to(at::kBFloat16);
  CHECK(at::equal(rounded(held.to(at::kFloat), 11), held));
  const double infinity = std::numeric_limits<double>::infinity();
  const at::Tensor odd = at::tensor({infinity, -infinity, std::nan(""), 0.0, -0.0}, at::kFloat);
  const at::Tensor found = rounded(odd, 11).to(at::kFloat);
  CHECK(found[0].item<double>() == infinity);
  CHECK(found[1].item<double>() == -infinity);
  CHECK(std::isnan(found[2].item<double>()));
  // A NaN whose bits are all in the half that goes.
  at::Tensor low = at::full({1}, 0x7f800001, at::kInt);
  CHECK(std::isnan(rounded(low.view(at::kFloat), 11).to(at::kFloat).item<double>()));
}

TEST_CASE("draws depend on key and place alone", "[stochastic_rounding]") {
  const at::Tensor numbers = random_normal({300000}, 5).to(at::kFloat);
  const at::Tensor whole = rounded(numbers, 42);
  CHECK(at::equal(whole.narrow(0, 1001, 70001), rounded(numbers.narrow(0, 1001, 70001), 42, 1001)));
  CHECK(!at::equal(whole, rounded(numbers, 43)));
}
