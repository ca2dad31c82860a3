// Rotary embedding against complex rotation and the published constants of DeepSeek-V3.
#include "tests/support/catch.h"

#include <cmath>
#include <complex>

#include "moe/attention/rope.h"
#include "tests/support/numbers.h"

using namespace moetune;

namespace {

RotarySpec deepseek_v3() {
  RotarySpec config;
  config.scaling = RotarySpec::Scaling::kYarn;
  config.dim = 64;
  config.theta = 10000.0;
  config.factor = 40;
  config.original_max_positions = 4096;
  config.mscale = 1.0;
  config.mscale_all_dim = 1.0;
  return config;
}

RotarySpec plain(int64_t dim) {
  RotarySpec config;
  config.dim = dim;
  return config;
}

/// Frequency of pair i over the unscaled one: 1 up to `low`, 1/factor from `high` on, linear between.
double share(int64_t i, double low, double high, double factor) {
  const double ramp = std::min(1.0, std::max(0.0, (static_cast<double>(i) - low) / (high - low)));
  return 1.0 - ramp + ramp / factor;
}

}  // namespace

TEST_CASE("YaRN interpolates the pairs that the check values say", "[rope]") {
  struct Expected {
    double theta, beta_fast, beta_slow, low, high;
    bool truncate;
  };
  for (const Expected& e : {Expected{1e4, 32, 1, 10, 23, true}, Expected{5e4, 1, 1, 19, 20, true},
                            Expected{1.5e5, 32, 1, 8.0928, 17.3980, false}}) {
    RotarySpec config = deepseek_v3();
    config.theta = e.theta;
    config.beta_fast = e.beta_fast;
    config.beta_slow = e.beta_slow;
    config.truncate = e.truncate;
    const at::Tensor frequency = Rope(config, at::kCPU).inverse_frequencies();
    REQUIRE(frequency.numel() == 32);
    for (int64_t i = 0; i < 32; ++i) {
      INFO("theta " << e.theta << ", pair " << i);
      const double expected = std::pow(e.theta, -static_cast<double>(i) / 32) * share(i, e.low, e.high, 40);
      CHECK(frequency[i].item<double>() == Approx(expected).epsilon(e.truncate ? 1e-6 : 1e-4));
    }
  }
}

TEST_CASE("cosines carry the attention factor", "[rope]") {
  const auto factor = [](const RotarySpec& config) {
    return Rope(config, at::kCPU).angles(long_tensor({0}), at::kDouble).cos_TA[0][0].item<double>();
  };
  RotarySpec config = deepseek_v3();
  CHECK(factor(config) == Approx(1.0));
  config.mscale = 0.707;
  CHECK(factor(config) == Approx((0.0707 * std::log(40) + 1) / (0.1 * std::log(40) + 1)).epsilon(1e-6));
  config.mscale.reset();
  CHECK(factor(config) == Approx(0.1 * std::log(40) + 1).epsilon(1e-6));
  config.attention_factor = 0.75;
  CHECK(factor(config) == Approx(0.75));
  CHECK(factor(plain(8)) == 1.0);
}

TEST_CASE("rotation turns interleaved pairs as complex numbers", "[rope]") {
  const at::Tensor position = long_tensor({0, 1, 7, 300}), x = random_normal({4, 2, 8}, 1);
  const at::Tensor rotated = rotate(x, Rope(plain(8), at::kCPU).angles(position, at::kDouble));
  for (int64_t t = 0; t < 4; ++t) {
    for (int64_t h = 0; h < 2; ++h) {
      for (int64_t i = 0; i < 4; ++i) {
        const std::complex<double> pair(x[t][h][2 * i].item<double>(), x[t][h][2 * i + 1].item<double>());
        const std::complex<double> turned =
            pair * std::polar(1.0, position[t].item<double>() * std::pow(10000.0, -static_cast<double>(i) / 4));
        CHECK(rotated[t][h][i].item<double>() == Approx(turned.real()).margin(1e-4));
        CHECK(rotated[t][h][4 + i].item<double>() == Approx(turned.imag()).margin(1e-4));
      }
    }
  }
}

TEST_CASE("rotation of halves turns feature i with feature i + dim / 2", "[rope]") {
  RotarySpec spec;
  spec.dim = 8;
  const at::Tensor position = long_tensor({0, 1, 7, 300}), x = random_normal({4, 2, 8}, 1);
  const RopeAngles pairs = Rope(spec, at::kCPU).angles(position, at::kDouble);
  spec.layout = RotarySpec::Layout::kHalves;
  const RopeAngles halves = Rope(spec, at::kCPU).angles(position, at::kDouble);
  const at::Tensor rotated = rotate(x, halves);
  for (int64_t t = 0; t < 4; ++t) {
    for (int64_t i = 0; i < 4; ++i) {
      const std::complex<double> pair(x[t][1][i].item<double>(), x[t][1][i + 4].item<double>());
      const std::complex<double> turned =
          pair * std::polar(1.0, position[t].item<double>() * std::pow(10000.0, -static_cast<double>(i) / 4));
      CHECK(rotated[t][1][i].item<double>() == Approx(turned.real()).margin(1e-4));
      CHECK(rotated[t][1][4 + i].item<double>() == Approx(turned.imag()).margin(1e-4));
    }
  }
  // Interleaved numbers in pairs and the same numbers in halves turn alike.
  CHECK(at::equal(rotate(x.unflatten(-1, {2, 4}).transpose(-1, -2).flatten(-2), pairs), rotated));
}

TEST_CASE("Llama 3's scaling keeps short waves, stretches long ones and ramps between", "[rope]") {
  RotarySpec spec;  // Llama 3.1's
  spec.scaling = RotarySpec::Scaling::kLlama3;
  spec.dim = 128;
  spec.theta = 5e5;
  spec.factor = 8;
  spec.original_max_positions = 8192;
  const Rope rope(spec, at::kCPU);
  int64_t kept = 0, divided = 0;
  for (int64_t i = 0; i < 64; ++i) {
    INFO("pair " << i);
    const double plain = std::pow(5e5, -static_cast<double>(i) / 64), turns = 8192 * plain / (2 * M_PI);
    const double kept_share = std::min(1.0, std::max(0.0, (turns - 1) / 3));
    kept += kept_share == 1.0;
    divided += kept_share == 0.0;
    CHECK(rope.inverse_frequencies()[i].item<double>() ==
          Approx(plain * (kept_share + (1 - kept_share) / 8)).epsilon(1e-6));
  }
  // Waves shorter than 2,048 positions: i < 64 ln(2048 / 2 pi) / ln 5e5 = 28.2; longer than 8,192: i > 34.98.
  CHECK(kept == 29);
  CHECK(divided == 29);
  CHECK(rope.angles(long_tensor({0}), at::kDouble).cos_TA[0][0].item<double>() == 1.0);
}
