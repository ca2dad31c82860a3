#include "moe/attention/latent_attention.h"

#include <algorithm>
#include "moe/attention/latent_keys.h"

#include "moe/attention/packed_attention.h"
#include "moe/attention/rotated_heads.h"
#include "moe/rms_norm.h"

namespace moetune {
namespace {

constexpr double kLatentNormEps = 1e-6;  // the reference gives these norms their default, not the config's eps

}  // namespace

at::Tensor LatentAttention::forward(const at::Tensor& x_TD, const Slice& slice, const RopeAngles& angles,
                                    const StepRandom& random, KeptAttention* kept, Wanted wanted) const {
  const LatentWeights& w = weights_;
  at::Tensor query_TC = w.q ? x_TD : rms_norm(w.q_a->forward(x_TD, slice.token_T, random), w.q_a_norm, kLatentNormEps);
  at::Tensor compressed = w.kv_a->forward(x_TD, slice.token_T, random);
  std::vector<at::Tensor> latent_and_key = compressed.split_with_sizes({spec_.kv_lora, spec_.rotary_dim}, -1);
  at::Tensor latent_TC = rms_norm(latent_and_key[0], w.kv_a_norm, kLatentNormEps);

  std::vector<at::Tensor> rows =
      axis_.gather_rows(std::vector<at::Tensor>{query_TC, latent_TC, latent_and_key[1]}, slice.num_all_rows);
  const at::Tensor &query_UC = rows[0], &latent_UC = rows[1], &key_UA = rows[2], &token_U = slice.token_U;
  at::Tensor q_UC = (w.q ? w.q : w.q_b)->forward(query_UC, token_U, random);
  q_UC = rotated_heads(std::move(q_UC), heads_, spec_.nope_dim, angles);
  const at::Tensor kv_UC = w.kv_b->forward(latent_UC, token_U, random);
  const LatentKeys kv = latent_keys(kv_UC, key_UA, heads_, spec_.nope_dim, angles);
  const at::Tensor out_UHA =
      packed_attention(q_UC.unflatten(-1, {heads_, spec_.key_dim()}), kv.k_UHA, kv.v_UHA, slice, spec_, {}, kept);
  return axis_.reduce_scatter_rows(w.o->forward(out_UHA.flatten(1), token_U, random, wanted), wanted);
}

std::vector<Linear*> LatentAttention::linears() const {
  std::vector<Linear*> found;
  for (const auto* map : {&weights_.q, &weights_.q_a, &weights_.q_b, &weights_.kv_a, &weights_.kv_b, &weights_.o}) {
    if (*map) found.push_back(map->get());
  }
  return found;
}

PartCost latent_attention_cost(const AttentionSpec& a, const DenseMaps& maps, int64_t width, const PassTraits& traits) {
  const std::vector<std::string> leaves{"q_proj", "q_a_proj", "q_b_proj", "kv_a_proj_with_mqa", "kv_b_proj", "o_proj"};
  const int64_t P = traits.parts.dense, size = traits.element_bytes();
  const int64_t q_lora = a.q_lora.value_or(0), qk = a.heads * a.key_dim(), kv = a.heads * (a.nope_dim + a.value_dim),
                value = a.heads * a.value_dim;
  const bool keeps_x =
                 maps.keeps_input("q_a_proj") || maps.keeps_input("q_proj") || maps.keeps_input("kv_a_proj_with_mqa"),
             keeps_q = maps.keeps_input("q_b_proj"), keeps_kv = maps.keeps_input("kv_b_proj");
  // Latents before their norms; after them as the maps to the heads read them, gathered with the rotary key as one
  // matrix.
  int64_t saved = (keeps_x ? width : 0) + q_lora + a.kv_lora + a.rotary_dim;
  if (P == 1) {
    saved += (keeps_q ? q_lora : 0) + (keeps_kv ? a.kv_lora : 0);
  } else if (keeps_q || keeps_kv || maps.keeps_input("q_proj")) {
    saved += P * (a.q_lora.value_or(width) + a.kv_lora + a.rotary_dim);
  }
  const double product = 2.0 * traits.keys * static_cast<double>(qk + value);
  PartCost cost;
  cost.saved = maps.low_bytes(leaves) + (a.heads + (a.q_lora ? 2 : 1)) * traits.wide_bytes();
  if (attends_ragged(traits, std::max(a.key_dim(), a.value_dim))) {
    // Queries, keys, and the product of kv_b, in which the values lie; the output is the input of o_proj.
    saved += 2 * qk + kv + value;
    cost.kept = value * size + a.heads * traits.wide_bytes();
    cost.spared_where_kept.attention = product;
    // In the backward pass: gradients of output, queries, keys and values, and the kernel's own sum of the queries' in
    // fp32. FlashAttention's has output and gradients as wide as keys.
    cost.transient = 5 * qk * size + qk * traits.wide_bytes();
    cost.transient_of_long = (2 * qk + 2 * value) * size + qk * traits.wide_bytes();
  } else {
    saved += bucketed_elements(a, a.heads, traits) + (maps.keeps_input("o_proj") ? value : 0);
    cost.transient = cost.transient_of_long = (4 * qk + 2 * kv) * size;
  }
  cost.saved += saved * size;
  cost.forward.dense = maps.forward_flops(leaves);
  cost.forward.attention = product;
  cost.spared_where_kept.dense = maps.spared_flops({"o_proj"});
  // Two norms, the rotation, keys written once.
  cost.forward.touched_bytes =
      static_cast<double>(size * (2 * (q_lora + a.kv_lora) + 2 * a.heads * a.rotary_dim + a.heads * a.nope_dim + qk)) +
      maps.forward_adapter_bytes(leaves);
  cost.backward.dense = maps.backward_flops(leaves);
  cost.backward.attention = 2.5 * product;
  cost.backward.touched_bytes = static_cast<double>(size * (3 * (q_lora + a.kv_lora) + 2 * qk + qk + value + kv)) +
                                maps.backward_adapter_bytes(leaves);
  if (P > 1) {
    const double gathered = static_cast<double>(P - 1) / static_cast<double>(P) * static_cast<double>(size);
    const double latents = static_cast<double>(P * (a.q_lora.value_or(width) + a.kv_lora + a.rotary_dim)),
                 output = static_cast<double>(P * width);
    cost.forward.tensor_axis_bytes = cost.backward.tensor_axis_bytes = gathered * (latents + output);
    cost.spared_where_kept.tensor_axis_bytes = gathered * output;
    cost.tensor_axis_calls = cost.tensor_axis_calls_again = 2;
  }
  return cost;
}

}  // namespace moetune
