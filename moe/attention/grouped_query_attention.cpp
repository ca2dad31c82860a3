#include "moe/attention/grouped_query_attention.h"

#include <algorithm>

#include "moe/attention/packed_attention.h"
#include "moe/attention/rotated_heads.h"
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

void GroupedQueryAttention::norm_heads(at::Tensor& q_UC, at::Tensor& k_UC) const {
  const double eps = spec_.head_norm_eps;
  if (spec_.head_norm == HeadNorm::kPerHead) {
    const auto heads_of = [&](const at::Tensor& x_UC) { return x_UC.unflatten(-1, {-1, spec_.key_dim()}); };
    q_UC = rms_norm(heads_of(q_UC), weights_.q_norm, eps);
    k_UC = rms_norm(heads_of(k_UC), weights_.k_norm, eps);
  }
  if (spec_.head_norm != HeadNorm::kAllHeads) return;
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
}

at::Tensor GroupedQueryAttention::with_position(at::Tensor x_UC, int64_t heads, const RopeAngles& angles) const {
  const std::vector<int64_t> shape{x_UC.size(0), heads, spec_.key_dim()};
  if (spec_.rotary_dim == 0) return x_UC.view(shape);
  const at::Tensor rotated = rotated_heads(std::move(x_UC), heads, /*first=*/0, angles).view(shape);
  if (spec_.head_norm != HeadNorm::kWeightlessAfterwards) return rotated;
  return rms_norm(rotated, at::ones({spec_.key_dim()}, rotated.options()), spec_.head_norm_eps);
}

at::Tensor GroupedQueryAttention::forward(const at::Tensor& x_TD, const Slice& slice, const RopeAngles& angles,
                                          const StepRandom& random, KeptAttention* kept, Wanted wanted) const {
  const at::Tensor x_UD = axis_.gather_rows(x_TD, slice.num_all_rows);
  at::Tensor q_UC = weights_.q->forward(x_UD, slice.token_U, random);
  at::Tensor k_UC = weights_.k->forward(x_UD, slice.token_U, random);
  const at::Tensor v_UGA = weights_.v->forward(x_UD, slice.token_U, random).unflatten(-1, {kv_heads_, spec_.value_dim});
  norm_heads(q_UC, k_UC);
  at::Tensor q_UHA = with_position(std::move(q_UC), heads_, angles);
  const at::Tensor k_UGA = with_position(std::move(k_UC), kv_heads_, angles);
  if (spec_.rotary_dim == 0 && spec_.temperature_scale != 0.0) {
    q_UHA = with_temperature(q_UHA, slice.position_U, spec_);
  }
  const at::Tensor out_UHA = packed_attention(q_UHA, k_UGA, v_UGA, slice, spec_, weights_.sinks, kept);
  return axis_.reduce_scatter_rows(weights_.o->forward(out_UHA.flatten(1), slice.token_U, random, wanted), wanted);
}

std::vector<Linear*> GroupedQueryAttention::linears() const {
  return {weights_.q.get(), weights_.k.get(), weights_.v.get(), weights_.o.get()};
}

PartCost grouped_query_attention_cost(const AttentionSpec& a, const DenseMaps& maps, int64_t width,
                                      const PassTraits& traits) {
  const std::vector<std::string> leaves{"q_proj", "k_proj", "v_proj", "o_proj"};
  const int64_t P = traits.parts.dense, size = traits.element_bytes();
  // More ranks than key heads have one each.
  const int64_t G = std::max(a.kv_heads, P);
  const int64_t q = a.heads * a.key_dim(), k = G * a.key_dim(), v = G * a.value_dim, out = a.heads * a.value_dim;
  const double product = 2.0 * traits.keys * static_cast<double>(q + out);
  PartCost cost;
  int64_t saved = 0;
  if (maps.keeps_input("q_proj") || maps.keeps_input("k_proj") || maps.keeps_input("v_proj")) {
    saved += P > 1 ? P * width : width;
  }
  cost.saved = maps.low_bytes(leaves) + a.heads * traits.wide_bytes();
  switch (a.head_norm) {
    case HeadNorm::kNone: break;
    case HeadNorm::kPerHead:
    case HeadNorm::kWeightlessAfterwards:
      saved += q + k;
      cost.saved += (a.heads + G) * traits.wide_bytes();
      break;
    // Over a tensor axis the norm is made of plain operations, which keep it wide too.
    case HeadNorm::kAllHeads: saved += (P > 1 ? 4 : 1) * (q + k); break;
  }
  if (attends_ragged(traits, std::max(a.key_dim(), a.value_dim))) {
    saved += q + k + v + out;
    cost.kept = out * size + a.heads * traits.wide_bytes();
    cost.spared_where_kept.attention = product;
    // In the backward pass: gradients of output, queries, keys and values, those of keys and values once for each query
    // head before they are summed, and the kernel's own sum of the queries' in fp32.
    cost.transient = (2 * out + 2 * q + q + k + v) * size + q * traits.wide_bytes();
  } else {
    saved += bucketed_elements(a, G, traits) + (maps.keeps_input("o_proj") ? out : 0);
    cost.transient = (4 * (q + k) + 2 * v) * size;
  }
  if (P > 1) cost.transient += 2 * P * width * size;
  cost.transient_of_long = cost.transient;
  cost.saved += saved * size;
  cost.forward.dense = maps.forward_flops(leaves);
  cost.forward.attention = product;
  cost.spared_where_kept.dense = maps.spared_flops({"o_proj"});
  const int64_t normed = a.head_norm == HeadNorm::kNone ? 0 : 2 * (q + k), rotated = 2 * (a.heads + G) * a.rotary_dim;
  // What a kernel without sinks gives is read and written once more.
  const int64_t scaled = a.sinks ? 2 * out : 0;
  if (cost.kept > 0) cost.spared_where_kept.touched_bytes = static_cast<double>(size * scaled);
  cost.forward.touched_bytes =
      static_cast<double>(size * (normed + rotated + scaled)) + maps.forward_adapter_bytes(leaves);
  cost.backward.dense = maps.backward_flops(leaves);
  cost.backward.attention = 2.5 * product;
  cost.backward.touched_bytes =
      static_cast<double>(size * (normed * 3 / 2 + 2 * (q + k))) + maps.backward_adapter_bytes(leaves);
  if (P > 1) {
    cost.forward.tensor_axis_bytes = cost.backward.tensor_axis_bytes = static_cast<double>((P - 1) * 2 * width * size);
    cost.spared_where_kept.tensor_axis_bytes = static_cast<double>((P - 1) * width * size);
    cost.tensor_axis_calls = cost.tensor_axis_calls_again = a.head_norm == HeadNorm::kAllHeads ? 4 : 2;
  }
  return cost;
}

}  // namespace moetune
