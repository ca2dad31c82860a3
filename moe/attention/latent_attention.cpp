#include "moe/attention/latent_attention.h"

#include "moe/attention/packed_attention.h"
#include "moe/rms_norm.h"

namespace moetune {
namespace {

constexpr double kLatentNormEps = 1e-6;  // the reference gives these norms their default, not the config's eps

}  // namespace

at::Tensor LatentAttention::forward(const at::Tensor& x_TD, const Slice& slice, const RopeAngles& angles,
                                    const StepRandom& random) const {
  const LatentWeights& w = weights_;
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
  at::Tensor out_UHA = packed_attention(at::cat({q_parts[0], rotated_q}, -1), at::cat({kv_parts[0], rotated_k}, -1),
                                        kv_parts[1], slice, spec_);
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
