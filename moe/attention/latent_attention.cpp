#include "moe/attention/latent_attention.h"

#include <torch/csrc/autograd/custom_function.h>

#include "moe/rms_norm.h"

namespace moetune {
namespace {

constexpr double kLatentNormEps = 1e-6;  // the reference gives these norms their default, not the config's eps

// Rows into bucket places. Each real row has exactly one place, so the transpose is a gather too, not a scatter with
// atomics.
struct ToBuckets : torch::autograd::Function<ToBuckets> {
  static at::Tensor forward(torch::autograd::AutogradContext* context, const at::Tensor& rows, const at::Tensor& gather,
                            const at::Tensor& inverse) {
    context->save_for_backward({inverse});
    return rows.index_select(0, gather);
  }
  static torch::autograd::variable_list backward(torch::autograd::AutogradContext* context,
                                                 torch::autograd::variable_list d) {
    return {d[0].index_select(0, context->get_saved_variables()[0]), at::Tensor(), at::Tensor()};
  }
};

// Bucket places back into rows. Padding places get a zero gradient: their queries were read by nobody.
struct FromBuckets : torch::autograd::Function<FromBuckets> {
  static at::Tensor forward(torch::autograd::AutogradContext* context, const at::Tensor& places,
                            const at::Tensor& gather, const at::Tensor& inverse, const at::Tensor& padding) {
    context->save_for_backward({gather, padding});
    return places.index_select(0, inverse);
  }
  static torch::autograd::variable_list backward(torch::autograd::AutogradContext* context,
                                                 torch::autograd::variable_list d) {
    auto saved = context->get_saved_variables();
    return {d[0].index_select(0, saved[0]).index_fill_(0, saved[1], 0), at::Tensor(), at::Tensor(), at::Tensor()};
  }
};

// Fused kernels on the CPU want one head width: values are padded with zero features, which add nothing.
at::Tensor causal_attention(const at::Tensor& q_BLHA, const at::Tensor& k_BLHA, const at::Tensor& v_BLHA,
                            double scale) {
  const int64_t value_dim = v_BLHA.size(-1);
  const int64_t missing = q_BLHA.size(-1) - value_dim;
  at::Tensor v = q_BLHA.is_cuda() || missing <= 0 ? v_BLHA : at::constant_pad_nd(v_BLHA, {0, missing});
  at::Tensor out =
      at::scaled_dot_product_attention(q_BLHA.transpose(1, 2), k_BLHA.transpose(1, 2), v.transpose(1, 2), {}, 0.0,
                                       /*is_causal=*/true, scale);
  return out.transpose(1, 2).narrow(-1, 0, value_dim);
}

}  // namespace

at::Tensor packed_causal_attention(const at::Tensor& q_UHA, const at::Tensor& k_UHA, const at::Tensor& v_UHA,
                                   const Slice& slice, double softmax_scale) {
  if (slice.num_all_rows == 0) return v_UHA;
  at::Tensor q = q_UHA, k = k_UHA, v = v_UHA;
  if (!slice.in_order) {
    q = ToBuckets::apply(q, slice.gather_M, slice.inverse_U);
    k = ToBuckets::apply(k, slice.gather_M, slice.inverse_U);
    v = ToBuckets::apply(v, slice.gather_M, slice.inverse_U);
  }
  std::vector<at::Tensor> outputs;
  int64_t place = 0;
  for (const AttentionBucket& bucket : slice.buckets) {
    const int64_t places = bucket.batch * bucket.length;
    auto dense = [&](const at::Tensor& rows) {
      return rows.narrow(0, place, places).unflatten(0, {bucket.batch, bucket.length});
    };
    outputs.push_back(causal_attention(dense(q), dense(k), dense(v), softmax_scale).flatten(0, 1));
    place += places;
  }
  at::Tensor out = outputs.size() == 1 ? outputs[0] : at::cat(outputs);
  return slice.in_order ? out : FromBuckets::apply(out, slice.gather_M, slice.inverse_U, slice.padding_places);
}

at::Tensor LatentAttention::forward(const at::Tensor& x_TD, const Slice& slice, const RopeAngles& angles,
                                    const StepRandom& random) const {
  const AttentionWeights& w = weights_;
  at::Tensor query_TC = w.q ? x_TD : rms_norm(w.q_a->forward(x_TD, slice.token_T, random), w.q_a_norm, kLatentNormEps);
  at::Tensor compressed = w.kv_a->forward(x_TD, slice.token_T, random);
  std::vector<at::Tensor> latent_and_key = compressed.split_with_sizes({spec_.kv_lora, spec_.rotary_dim}, -1);
  at::Tensor latent_TC = rms_norm(latent_and_key[0], w.kv_a_norm, kLatentNormEps);

  std::vector<at::Tensor> rows =
      axis_.gather_rows(std::vector<at::Tensor>{query_TC, latent_TC, latent_and_key[1]}, slice.num_all_rows);
  const at::Tensor &query_UC = rows[0], &latent_UC = rows[1], &key_UA = rows[2], &token_U = slice.token_U;
  at::Tensor q_UHA = (w.q ? w.q : w.q_b)->forward(query_UC, token_U, random).unflatten(-1, {heads_, spec_.key_dim()});
  std::vector<at::Tensor> q_parts = q_UHA.split_with_sizes({spec_.nope_dim, spec_.rotary_dim}, -1);
  at::Tensor kv_UHA =
      w.kv_b->forward(latent_UC, token_U, random).unflatten(-1, {heads_, spec_.nope_dim + spec_.value_dim});
  std::vector<at::Tensor> kv_parts = kv_UHA.split_with_sizes({spec_.nope_dim, spec_.value_dim}, -1);

  at::Tensor rotated_q = rotate(q_parts[1], angles);
  at::Tensor rotated_k = rotate(key_UA.unsqueeze(1), angles).expand({-1, heads_, -1});
  at::Tensor out_UHA =
      packed_causal_attention(at::cat({q_parts[0], rotated_q}, -1), at::cat({kv_parts[0], rotated_k}, -1), kv_parts[1],
                              slice, spec_.softmax_scale);
  return axis_.reduce_scatter_rows(w.o->forward(out_UHA.flatten(1), token_U, random));
}

std::vector<Linear*> LatentAttention::linears() const {
  std::vector<Linear*> found;
  for (const auto* map : {&weights_.q, &weights_.q_a, &weights_.q_b, &weights_.kv_a, &weights_.kv_b, &weights_.o}) {
    if (*map) found.push_back(map->get());
  }
  return found;
}

}  // namespace moetune
