#include "moe/block.h"

#include "moe/rms_norm.h"

namespace moetune {

std::vector<Linear*> Block::linears() const {
  std::vector<Linear*> found = parts_.attention->linears();
  if (parts_.mlp) {
    for (Linear* map : parts_.mlp->linears()) found.push_back(map);
  }
  return found;
}

int64_t Block::scratch_elements() const {
  int64_t elements = parts_.experts ? parts_.experts->scratch_elements() : 0;
  for (const Linear* map : linears()) {
    if (map->frozen() != nullptr) elements += map->frozen()->scratch_elements();
  }
  return elements;
}

void Block::use(PassContext& pass) {
  if (parts_.dense_slab == nullptr) return;
  parts_.dense_slab->use();
  for (Linear* map : linears()) map->frozen()->use(pass.scratch, pass.dequantised);
}

void Block::release(PassContext& pass) {
  if (parts_.dense_slab != nullptr) parts_.dense_slab->release();
  pass.scratch.reset();
}

void Block::use_experts() {
  if (parts_.expert_slab != nullptr) parts_.expert_slab->use();
}

void Block::release_experts() {
  if (parts_.expert_slab != nullptr) parts_.expert_slab->release();
}

Mixed Block::mix(const at::Tensor& x_TD, const Slice& slice, const RopeAngles& angles, const at::Tensor& replayed_TK,
                 bool balance, const PassContext& pass) const {
  at::Tensor normed_TD = rms_norm(x_TD, parts_.input_norm, eps_);
  Mixed mixed;
  mixed.residual_TD = x_TD + parts_.attention->forward(normed_TD, slice, angles, pass.random);
  mixed.z_TD = rms_norm(mixed.residual_TD, parts_.post_attention_norm, eps_);
  if (!is_moe()) return mixed;
  at::Tensor score_TE = parts_.router->scores(mixed.z_TD, slice.token_T, pass.random);
  mixed.expert_TK = replayed_TK;
  if (!replayed_TK.defined()) {
    mixed.expert_TK = parts_.router->choose(score_TE);
    mixed.expert_TK.narrow(0, slice.num_rows - slice.num_padding, slice.num_padding)
        .fill_(parts_.router->spec().experts);
  }
  mixed.weight_TK = parts_.router->weights(score_TE, mixed.expert_TK).to(x_TD.scalar_type());
  if (balance) {
    mixed.probability_TE = parts_.router->probabilities(score_TE);
    mixed.score_TE = score_TE;
  }
  return mixed;
}

void Block::add_mlp(Mixed& mixed, const Slice& slice, const PassContext& pass) const {
  if (parts_.mlp) mixed.residual_TD = mixed.residual_TD + parts_.mlp->forward(mixed.z_TD, slice, pass.random);
  if (!is_moe()) mixed.z_TD = at::Tensor();
}

}  // namespace moetune
