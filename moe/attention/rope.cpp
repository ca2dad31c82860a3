#include "moe/attention/rope.h"

#include <cmath>

namespace moetune {
namespace {

double mscale_of(double factor, double mscale) { return factor <= 1.0 ? 1.0 : 0.1 * mscale * std::log(factor) + 1.0; }

// The dimension at which a full turn over the original context takes `turns` rotations.
double correction_dim(double turns, const RotarySpec& spec) {
  return spec.dim * std::log(spec.original_max_positions / (turns * 2 * M_PI)) / (2 * std::log(spec.theta));
}

}  // namespace

Rope::Rope(const RotarySpec& spec, at::Device device) : attention_factor_(1.0) {
  at::Tensor exponent = at::arange(0, spec.dim, 2, at::kLong).to(at::kFloat) / static_cast<double>(spec.dim);
  at::Tensor frequency = at::pow(at::scalar_tensor(spec.theta, at::kFloat), exponent);
  if (spec.scaling == RotarySpec::Scaling::kDefault) {
    inverse_frequency_ = frequency.reciprocal().to(device);
    return;
  }
  at::Tensor extrapolated = frequency.reciprocal();
  at::Tensor interpolated = (frequency * spec.factor).reciprocal();
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
  inverse_frequency_ = (interpolated * (1 - extrapolation_share) + extrapolated * extrapolation_share).to(device);
  if (spec.attention_factor) {
    attention_factor_ = *spec.attention_factor;
  } else if (spec.mscale && spec.mscale_all_dim) {
    attention_factor_ = mscale_of(spec.factor, *spec.mscale) / mscale_of(spec.factor, *spec.mscale_all_dim);
  } else {
    attention_factor_ = mscale_of(spec.factor, 1.0);
  }
}

RopeAngles Rope::angles(const at::Tensor& position_T, at::ScalarType compute) const {
  at::Tensor angle = at::outer(position_T.to(at::kFloat), inverse_frequency_);
  return {angle.cos().mul_(attention_factor_).to(compute), angle.sin().mul_(attention_factor_).to(compute)};
}

at::Tensor rotate(const at::Tensor& x_THA, const RopeAngles& angles) {
  at::Tensor pairs = x_THA.unflatten(-1, {x_THA.size(-1) / 2, 2});
  at::Tensor first = pairs.select(-1, 0), second = pairs.select(-1, 1);
  at::Tensor cos = angles.cos_TA.unsqueeze(1), sin = angles.sin_TA.unsqueeze(1);
  return at::cat({first * cos - second * sin, second * cos + first * sin}, -1);
}

}  // namespace moetune
