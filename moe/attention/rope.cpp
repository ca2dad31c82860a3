#include "moe/attention/rope.h"

#include <cmath>

namespace moetune {
namespace {

double mscale_of(double factor, double mscale) { return factor <= 1.0 ? 1.0 : 0.1 * mscale * std::log(factor) + 1.0; }

// The dimension at which a full turn over the original context takes `turns` rotations.
double correction_dim(double turns, const RotarySpec& spec) {
  return spec.dim * std::log(spec.original_max_positions / (turns * 2 * M_PI)) / (2 * std::log(spec.theta));
}

// theta^(2 i / dim), a wavelength over 2 pi, in fp32 and in the order of the reference's operations.
at::Tensor plain_wavelengths(const RotarySpec& spec) {
  at::Tensor exponent = at::arange(0, spec.dim, 2, at::kLong).to(at::kFloat) / static_cast<double>(spec.dim);
  return at::pow(at::scalar_tensor(spec.theta, at::kFloat), exponent);
}

// Pairs that turn often keep their frequency, those that turn seldom have it divided by the factor, with a ramp over
// the pairs between (Peng et al. 2023, section 3.2).
at::Tensor yarn_frequencies(const RotarySpec& spec) {
  at::Tensor wavelength = plain_wavelengths(spec);
  at::Tensor extrapolated = wavelength.reciprocal();
  at::Tensor interpolated = (wavelength * spec.factor).reciprocal();
  double low = correction_dim(spec.beta_fast, spec);
  double high = correction_dim(spec.beta_slow, spec);
  if (spec.truncate) {
    low = std::floor(low);
    high = std::ceil(high);
  }
  low = std::max(low, 0.0);
  high = std::min(high, spec.dim - 1.0);
  if (low == high) high += 0.001;
  at::Tensor ramp = ((at::arange(spec.dim / 2, at::kFloat) - low) / (high - low)).clamp_(0, 1);
  at::Tensor extrapolation_share = 1 - ramp;
  return interpolated * (1 - extrapolation_share) + extrapolated * extrapolation_share;
}

// The same idea with the ramp over turns in the original context, n = positions / wavelength: kept from
// high_freq_factor turns on, divided below low_freq_factor, linear in n between (_compute_llama3_parameters).
at::Tensor llama3_frequencies(const RotarySpec& spec) {
  at::Tensor plain = plain_wavelengths(spec).reciprocal();
  at::Tensor wavelength = plain.reciprocal() * (2 * M_PI);
  at::Tensor is_long = wavelength > spec.original_max_positions / spec.low_freq_factor;
  at::Tensor is_short = wavelength < spec.original_max_positions / spec.high_freq_factor;
  at::Tensor share = (wavelength.reciprocal() * spec.original_max_positions - spec.low_freq_factor) /
                     (spec.high_freq_factor - spec.low_freq_factor);
  at::Tensor between = (1 - share) * plain / spec.factor + share * plain;
  return at::where(is_long, plain / spec.factor, at::where(is_short, plain, between));
}

at::Tensor inverse_frequencies_of(const RotarySpec& spec) {
  switch (spec.scaling) {
    case RotarySpec::Scaling::kYarn: return yarn_frequencies(spec);
    case RotarySpec::Scaling::kLlama3: return llama3_frequencies(spec);
    case RotarySpec::Scaling::kDefault: break;
  }
  return plain_wavelengths(spec).reciprocal();
}

double attention_factor_of(const RotarySpec& spec) {
  if (spec.scaling != RotarySpec::Scaling::kYarn) return 1.0;
  if (spec.attention_factor) return *spec.attention_factor;
  if (spec.mscale && spec.mscale_all_dim) {
    return mscale_of(spec.factor, *spec.mscale) / mscale_of(spec.factor, *spec.mscale_all_dim);
  }
  return mscale_of(spec.factor, 1.0);
}

}  // namespace

Rope::Rope(const RotarySpec& spec, at::Device device)
    : inverse_frequency_(inverse_frequencies_of(spec).to(device)),
      attention_factor_(attention_factor_of(spec)),
      layout_(spec.layout) {}

RopeAngles Rope::angles(const at::Tensor& position_T, at::ScalarType compute) const {
  at::Tensor angle = at::outer(position_T.to(at::kFloat), inverse_frequency_);
  return {angle.cos().mul_(attention_factor_).to(compute), angle.sin().mul_(attention_factor_).to(compute), layout_};
}

at::Tensor rotate(const at::Tensor& x_THA, const RopeAngles& angles) {
  const int64_t half = x_THA.size(-1) / 2;
  const bool pairs = angles.layout == RotarySpec::Layout::kPairs;
  at::Tensor two = pairs ? x_THA.unflatten(-1, {half, 2}) : x_THA.unflatten(-1, {2, half});
  at::Tensor first = two.select(pairs ? -1 : -2, 0), second = two.select(pairs ? -1 : -2, 1);
  at::Tensor cos = angles.cos_TA.unsqueeze(1), sin = angles.sin_TA.unsqueeze(1);
  return at::cat({first * cos - second * sin, second * cos + first * sin}, -1);
}

at::Tensor rotate_back(const at::Tensor& y_THA, const RopeAngles& angles) {
  const int64_t half = y_THA.size(-1) / 2;
  const at::Tensor a = y_THA.narrow(-1, 0, half), b = y_THA.narrow(-1, half, half);
  const at::Tensor cos = angles.cos_TA.unsqueeze(1), sin = angles.sin_TA.unsqueeze(1);
  const at::Tensor first = a * cos + b * sin, second = b * cos - a * sin;
  if (angles.layout == RotarySpec::Layout::kHalves) return at::cat({first, second}, -1);
  return at::stack({first, second}, -1).flatten(-2);
}

}  // namespace moetune
