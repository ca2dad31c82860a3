// Values that are no numbers, found wherever they lie, in every dtype of weights.
#include "parallel/bytes/finite.h"

#include <cmath>
#include <limits>

#include "parallel/base/error.h"
#include "tests/support/catch.h"
#include "tests/support/message_of.h"

using namespace moetune;

TEST_CASE("every value that is NaN or infinite is found and counted", "[finite]") {
  const double nan = std::nan(""), infinity = std::numeric_limits<double>::infinity();
  for (const auto type : {at::kDouble, at::kFloat, at::kBFloat16, at::kHalf, at::kFloat8_e4m3fn}) {
    // Below, at and above the run that vectors are made of, and the grain of a thread.
    for (const int64_t count : {1, 7, 4095, 4096, 4097, (1 << 18) + 5, 3 * (1 << 18)}) {
      const at::Tensor sound = at::linspace(-400, 400, count).to(type);
      INFO(c10::toString(type) << " " << count);
      CHECK(!find_non_finite(sound));
      for (const int64_t place : {int64_t{0}, count / 2, count - 1}) {
        for (const double bad : {nan, -nan, infinity, -infinity}) {
          // e4m3 has no infinity; a conversion gives NaN or its largest number.
          if (type == at::kFloat8_e4m3fn && std::isinf(bad)) continue;
          at::Tensor damaged = sound.clone();
          damaged[place].fill_(bad);
          const auto found = find_non_finite(damaged);
          REQUIRE(found);
          CHECK(found->count == 1);
          CHECK(found->first == place);
        }
      }
    }
    CHECK(!find_non_finite(at::empty({0}, type)));
  }
}

TEST_CASE("the largest numbers pass, and what bf16 rounds to infinity does not", "[finite]") {
  const auto passes = [](const at::Tensor& tensor) { return !find_non_finite(tensor).has_value(); };
  const double most = std::ldexp(2.0 - std::ldexp(1.0, -7), 127);    // of bf16
  const double middle = std::ldexp(2.0 - std::ldexp(1.0, -8), 127);  // rounds up
  for (const double sign : {1.0, -1.0}) {
    CHECK(passes(at::full({3}, sign * most, at::kBFloat16)));
    CHECK(passes(at::full({3}, sign * 65504.0, at::kHalf)));
    CHECK(passes(at::full({3}, sign * 448.0).to(at::kFloat8_e4m3fn)));
    for (const auto type : {at::kFloat, at::kDouble}) {
      CHECK(passes(at::full({3}, sign * most, type)));
      CHECK(!passes(at::full({3}, sign * middle, type)));
      CHECK(std::isinf(at::full({1}, sign * middle, type).to(at::kBFloat16).item<double>()));
    }
    const double below = std::nextafter(static_cast<float>(middle), 0.0f);
    CHECK(passes(at::full({3}, sign * below, at::kFloat)));
    CHECK(std::isfinite(at::full({1}, sign * below, at::kFloat).to(at::kBFloat16).item<double>()));
    CHECK(!passes(at::full({3}, sign * 1e300, at::kDouble)));
  }
}

TEST_CASE("the message names place, count and first element", "[finite]") {
  at::Tensor weight = at::zeros({3, 4}, at::kBFloat16);
  require_finite(weight, "f: w");
  weight[1][2].fill_(std::nan(""));
  weight[2][0].fill_(1.0 / 0.0);
  const std::string said = message_of<UserError>([&] { require_finite(weight, "f: w"); });
  CHECK(contains(said, "f: w holds values that are NaN or infinite"));
  CHECK(contains(said, "2 of 12, the first at [1, 2]"));
}
