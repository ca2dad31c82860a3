#include "moe/attention/packed_attention.h"

#include <algorithm>

#include "moe/attention/bucketed_attention.h"
#include "moe/attention/ragged_attention.h"
#include "parallel/base/error.h"

namespace moetune {

at::Tensor packed_attention(const at::Tensor& q_UHA, const at::Tensor& k_UGA, const at::Tensor& v_UGA,
                            const Slice& slice, const AttentionSpec& spec, const at::Tensor& sinks_H,
                            KeptAttention* kept) {
  MT_CHECK(q_UHA.size(1) % k_UGA.size(1) == 0, q_UHA.size(1), " query heads on ", k_UGA.size(1), " key heads");
  if (slice.num_all_rows == 0) {
    const int64_t readers = q_UHA.size(1) / v_UGA.size(1);
    return v_UGA.unsqueeze(2).expand({-1, -1, readers, -1}).flatten(1, 2);
  }
  return has_ragged_attention(q_UHA, v_UGA) ? ragged_attention(q_UHA, k_UGA, v_UGA, slice.lengths, spec, sinks_H, kept)
                                            : bucketed_attention(q_UHA, k_UGA, v_UGA, slice.lengths, spec, sinks_H);
}

bool attends_ragged(const PassTraits& traits, int64_t width) {
  return traits.on_gpu() && traits.element_bytes() == 2 && width <= 256;
}

int64_t bucketed_elements(const AttentionSpec& a, int64_t key_heads, const PassTraits& traits) {
  const int64_t queries = a.heads * a.key_dim();
  // On a CPU values are padded to the width of the keys, and the product is as wide.
  const int64_t value_dim = traits.on_gpu() ? a.value_dim : std::max(a.key_dim(), a.value_dim);
  // Where a GPU's kernel knows no groups, keys and values are repeated for the queries that read them.
  const int64_t G = traits.on_gpu() ? a.heads : key_heads;
  const int64_t elements = queries + G * (a.key_dim() + value_dim) + a.heads * value_dim;
  return elements + elements / 8;  // documents of unequal length share a batch, padded by up to an eighth
}

}  // namespace moetune
