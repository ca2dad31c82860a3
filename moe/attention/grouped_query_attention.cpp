#include "moe/attention/grouped_query_attention.h"

#include <algorithm>

#include "moe/attention/packed_attention.h"
#include "moe/rms_norm.h"
#include "parallel/base/error.h"

namespace moetune {
namespace {

using HeadNorm = AttentionSpec::HeadNorm;

at::Tensor wide(const at::Tensor& x) { return x.to(accumulate_dtype(x.scalar_type())); }

/// Sum over the axis, whole on every rank. Each rank uses it for its own heads, so its gradient is a sum over the ranks
/// too: the two collectives are each other's transpose, and their backward passes in reverse order give that.
at::Tensor sum_over(const TensorAxis& axis, const at::Tensor& partial_UC) {
  return axis.gather_rows(axis.reduce_scatter_rows(partial_UC), partial_UC.size(0));
}

/// weight * round(x / sqrt(sum_of_squares / width + eps)): rms_norm with a sum over more features than those here.
at::Tensor rms_norm_of_part(const at::Tensor& x_UC, const at::Tensor& sum_of_squares_U1, int64_t width,
                            const at::Tensor& weight_C, double eps) {
  const at::Tensor inverse_rms = (sum_of_squares_U1 / static_cast<double>(width) + eps).rsqrt();
  return (wide(x_UC) * inverse_rms).to(x_UC.scalar_type()) * weight_C;
}

/// x_UHA [U, H, A] times 1 + scale ln(1 + floor((position + 1) / floor)), the factor in fp32 (fp64).
at::Tensor with_temperature(const at::Tensor& x_UHA, const at::Tensor& position_U, const AttentionSpec& spec) {
  const at::Tensor steps =
      ((position_U.to(accumulate_dtype(x_UHA.scalar_type())) + 1.0) / spec.temperature_floor).floor();
  const at::Tensor factor_U = steps.log1p() * spec.temperature_scale + 1.0;
  return (wide(x_UHA) * factor_U.view({-1, 1, 1})).to(x_UHA.scalar_type());
}

}  // namespace

GroupedQueryAttention::GroupedQueryAttention(const AttentionSpec& spec, GroupedQueryWeights weights,
                                             const TensorAxis& axis)
    : spec_(spec),
      weights_(std::move(weights)),
      axis_(axis),
      heads_(spec.heads / axis.size()),
      kv_heads_(std::max<int64_t>(1, spec.kv_heads / axis.size())),
      copies_(std::max<int64_t>(1, axis.size() / spec.kv_heads)) {
  MT_CHECK(heads_ * axis.size() == spec.heads && kv_heads_ * axis.size() == spec.kv_heads * copies_, spec.heads,
           " heads and ", spec.kv_heads, " key heads on ", axis.size(), " ranks");
}

void GroupedQueryAttention::norm_heads(at::Tensor& q_UHA, at::Tensor& k_UGA) const {
  const double eps = spec_.head_norm_eps;
  if (spec_.head_norm == HeadNorm::kPerHead) {
    q_UHA = rms_norm(q_UHA, weights_.q_norm, eps);
    k_UGA = rms_norm(k_UGA, weights_.k_norm, eps);
  }
  if (spec_.head_norm != HeadNorm::kAllHeads) return;
  at::Tensor q_UC = q_UHA.flatten(1), k_UC = k_UGA.flatten(1);
  if (axis_.size() == 1) {
    q_UC = rms_norm(q_UC, weights_.q_norm, eps);
    k_UC = rms_norm(k_UC, weights_.k_norm, eps);
  } else {
    const auto squares = [](const at::Tensor& x_UC) { return wide(x_UC).square().sum(-1, /*keepdim=*/true); };
    // Each key head counts once, whoever has copies of it.
    const at::Tensor k_squares = squares(k_UC) / static_cast<double>(copies_);
    const std::vector<at::Tensor> sums = sum_over(axis_, at::cat({squares(q_UC), k_squares}, 1)).split(1, 1);
    at::Tensor k_norm = weights_.k_norm;
    if (copies_ > 1) k_norm = k_norm.narrow(0, axis_.index() / copies_ * spec_.key_dim(), spec_.key_dim());
    q_UC = rms_norm_of_part(q_UC, sums[0], spec_.heads * spec_.key_dim(), weights_.q_norm, eps);
    k_UC = rms_norm_of_part(k_UC, sums[1], spec_.kv_heads * spec_.key_dim(), k_norm, eps);
  }
  q_UHA = q_UC.view_as(q_UHA);
  k_UGA = k_UC.view_as(k_UGA);
}

at::Tensor GroupedQueryAttention::with_position(const at::Tensor& x_UHA, const RopeAngles& angles) const {
  if (spec_.rotary_dim == 0) return x_UHA;
  at::Tensor rotated = rotate(x_UHA.narrow(-1, 0, spec_.rotary_dim), angles);
  if (spec_.nope_dim > 0) rotated = at::cat({rotated, x_UHA.narrow(-1, spec_.rotary_dim, spec_.nope_dim)}, -1);
  if (spec_.head_norm != HeadNorm::kWeightlessAfterwards) return rotated;
  return rms_norm(rotated, at::ones({spec_.key_dim()}, rotated.options()), spec_.head_norm_eps);
}

at::Tensor GroupedQueryAttention::forward(const at::Tensor& x_TD, const Slice& slice, const RopeAngles& angles,
                                          const StepRandom& random) const {
  const at::Tensor x_UD = axis_.gather_rows(x_TD, slice.num_all_rows);
  const auto heads_of = [&](const Linear& map, int64_t heads, int64_t width) {
    return map.forward(x_UD, slice.token_U, random).unflatten(-1, {heads, width});
  };
  at::Tensor q_UHA = heads_of(*weights_.q, heads_, spec_.key_dim());
  at::Tensor k_UGA = heads_of(*weights_.k, kv_heads_, spec_.key_dim());
  const at::Tensor v_UGA = heads_of(*weights_.v, kv_heads_, spec_.value_dim);
  norm_heads(q_UHA, k_UGA);
  q_UHA = with_position(q_UHA, angles);
  k_UGA = with_position(k_UGA, angles);
  if (spec_.rotary_dim == 0 && spec_.temperature_scale != 0.0) {
    q_UHA = with_temperature(q_UHA, slice.position_U, spec_);
  }
  const at::Tensor out_UHA = packed_attention(q_UHA, k_UGA, v_UGA, slice, spec_, weights_.sinks);
  return axis_.reduce_scatter_rows(weights_.o->forward(out_UHA.flatten(1), slice.token_U, random));
}

std::vector<Linear*> GroupedQueryAttention::linears() const {
  return {weights_.q.get(), weights_.k.get(), weights_.v.get(), weights_.o.get()};
}

}  // namespace moetune
