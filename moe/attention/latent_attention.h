// Multi-head latent attention (DeepSeek-V2 report, section 2.1) over packed documents.
//
//   at::Tensor y_TD = attention.forward(x_TD, slice, angles, random, nullptr, Wanted::kNumbers);
//
// Queries and keys/values pass through low-rank latents (c_q, c_kv), one rotary key is shared by all heads, and each
// head attends causally within its own document.
//
// On a tensor axis each rank has its heads: norms and the maps to the latents run on its own rows, the latents (U rows,
// narrow) are gathered, and what its heads add to the residual stream is summed where the rows belong.
#pragma once

#include <memory>

#include "moe/attention/attention.h"
#include "moe/blueprint.h"
#include "moe/cost.h"
#include "parallel/comm/tensor_axis.h"

namespace moetune {

/// The maps and norms of one layer's attention; made by moe/model. H: heads of this rank.
struct LatentWeights {
  std::unique_ptr<Linear> q;         ///< q_proj [H*qk, D], where the model has no query latent
  std::unique_ptr<Linear> q_a, q_b;  ///< [q_lora, D], [H*qk, q_lora]
  std::unique_ptr<Linear> kv_a;      ///< kv_a_proj_with_mqa [kv_lora + rope, D]
  std::unique_ptr<Linear> kv_b;      ///< [H * (nope + value), kv_lora]
  std::unique_ptr<Linear> o;         ///< [D, H * value]
  at::Tensor q_a_norm, kv_a_norm;
};

class LatentAttention final : public Attention {
 public:
  LatentAttention(const AttentionSpec& spec, LatentWeights weights, const TensorAxis& axis)
      : spec_(spec), weights_(std::move(weights)), axis_(axis), heads_(spec.heads / axis.size()) {}

  at::Tensor forward(const at::Tensor& x_TD, const Slice& slice, const RopeAngles& angles, const StepRandom& random,
                     KeptAttention* kept, Wanted wanted) const override;
  std::vector<Linear*> linears() const override;

 private:
  AttentionSpec spec_;
  LatentWeights weights_;
  TensorAxis axis_;
  int64_t heads_;  // of this rank
};

/// Of a row through forward() and its backward pass; `width`: D.
PartCost latent_attention_cost(const AttentionSpec& spec, const DenseMaps& maps, int64_t width,
                               const PassTraits& traits);

}  // namespace moetune
