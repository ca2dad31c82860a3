#include "moe/block.h"

#include <algorithm>

#include "moe/attention/grouped_query_attention.h"
#include "moe/attention/latent_attention.h"
#include "moe/rms_norm.h"
#include "parallel/device/trace_range.h"

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
  const TraceRange range("weights");
  parts_.dense_slab->use();
  for (Linear* map : linears()) {
    if (map->frozen() != nullptr) map->frozen()->use(pass.scratch, pass.dequantised);
  }
}

void Block::release(PassContext& pass) {
  if (parts_.dense_slab != nullptr) parts_.dense_slab->release();
  pass.scratch.reset();
}

void Block::use_experts() {
  if (parts_.expert_slab == nullptr) return;
  const TraceRange range("weights");
  parts_.expert_slab->use();
}

void Block::release_experts() {
  if (parts_.expert_slab != nullptr) parts_.expert_slab->release();
}

Mixed Block::mix(const at::Tensor& x_TD, const Slice& slice, const RopeAngles& angles, const at::Tensor& replayed_TK,
                 bool balance, const PassContext& pass) const {
  const TraceRange range("mixing");
  at::Tensor normed_TD = rms_norm(x_TD, parts_.input_norm, eps_);
  Mixed mixed;
  const NormedSum residual = add_rms_norm(x_TD, parts_.attention->forward(normed_TD, slice, angles, pass.random),
                                          parts_.post_attention_norm, eps_);
  mixed.residual_TD = residual.sum;
  mixed.z_TD = residual.normed;
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
  const TraceRange range("mlp");
  if (parts_.mlp) mixed.residual_TD = mixed.residual_TD + parts_.mlp->forward(mixed.z_TD, slice, pass.random);
  if (!is_moe()) mixed.z_TD = at::Tensor();
}

namespace {

bool are_alike(const Blueprint& blueprint, const std::vector<LinearMap>& a, const std::vector<LinearMap>& b) {
  const auto of = [&](const std::vector<LinearMap>& maps) { return blueprint.layer(maps.at(0).layer); };
  const auto same = [](const LinearMap& x, const LinearMap& y) {
    if (x.outputs != y.outputs || x.inputs != y.inputs || x.stack != y.stack) return false;
    if (x.trained != y.trained || x.trained_experts != y.trained_experts) return false;
    if (x.adapter.has_value() != y.adapter.has_value()) return false;
    return !x.adapter || (x.adapter->rank == y.adapter->rank && x.adapter->dropout == y.adapter->dropout &&
                          x.adapter->experts == y.adapter->experts);
  };
  return a.size() == b.size() && std::equal(a.begin(), a.end(), b.begin(), same) && of(a) == of(b);
}

}  // namespace

std::vector<size_t> first_alike(const Blueprint& blueprint, const std::vector<std::vector<LinearMap>>& blocks) {
  std::vector<size_t> firsts, first(blocks.size());
  for (size_t i = 0; i < blocks.size(); ++i) {
    const auto found = std::find_if(firsts.begin(), firsts.end(),
                                    [&](size_t j) { return are_alike(blueprint, blocks[j], blocks[i]); });
    first[i] = found == firsts.end() ? i : *found;
    if (found == firsts.end()) firsts.push_back(i);
  }
  return first;
}

BlockCost block_cost(const Blueprint& blueprint, const std::vector<LinearMap>& maps, const PassTraits& traits) {
  const AttentionSpec& spec = blueprint.layer(maps.at(0).layer).attention;
  const int64_t D = blueprint.width, size = traits.element_bytes();
  const DenseMaps dense(maps, traits);
  const auto of_attention =
      spec.kind == AttentionSpec::Kind::kLatent ? latent_attention_cost : grouped_query_attention_cost;
  const PartCost attention = of_attention(spec, dense, D, traits), mlp = swiglu_mlp_cost(dense, D, traits);
  BlockCost cost;
  cost.is_moe = std::any_of(maps.begin(), maps.end(), [](const LinearMap& map) { return map.stack > 0; });
  const bool has_mlp = dense.outputs("gate_proj") > 0;
  // The residual behind attention, which its norm keeps, and that behind the MLP; z, which MLP and experts read.
  int64_t saved = D + (has_mlp ? D : 0);
  if (cost.is_moe || dense.keeps_input("gate_proj") || dense.keeps_input("up_proj")) saved += D;
  cost.saved = saved * size + 2 * traits.wide_bytes() + attention.saved + mlp.saved;
  cost.mixing = std::max(attention.transient, mlp.transient);
  cost.mixing_of_long = std::max(attention.transient_of_long, mlp.transient_of_long);
  cost.tensor_axis_calls = attention.tensor_axis_calls + mlp.tensor_axis_calls;
  // Two norms, the first residual's sum in the second one's pass; the MLP's sum.
  cost.forward.touched_bytes = static_cast<double>(size * (6 + (has_mlp ? 3 : 0)) * D);
  cost.backward.touched_bytes = static_cast<double>(size * 7 * D);
  for (const PartCost* part : {&attention, &mlp}) {
    cost.forward.add(part->forward);
    cost.backward.add(part->backward);
  }
  cost.again = cost.forward;
  if (!cost.is_moe) return cost;
  const PartCost router = router_cost(blueprint.router, D, traits);
  cost.saved += router.saved;
  cost.forward.add(router.forward);
  cost.backward.add(router.backward);
  cost.experts = routed_experts_cost(blueprint, maps, traits);
  cost.forward.add(cost.experts.forward);
  cost.backward.add(cost.experts.backward);
  cost.again.add(router.forward).add(cost.experts.again);
  return cost;
}

int64_t block_scratch_elements(const std::vector<LinearMap>& maps, const PassTraits& traits, int64_t chunk_experts) {
  int64_t elements = chunk_experts * folded_scratch_elements(maps, traits);
  for (const LinearMap& map : maps) {
    if (!map.is_held_frozen()) continue;  // dense as it is
    const FrozenShape shape{held_format(map, traits.parts.base), map.units(chunk_experts), map.outputs, map.inputs,
                            traits.parts.cut_of(map)};
    const int64_t made_dense = shape.scratch_elements(traits.compute);
    // What trains is laid over a copy of what is held dense.
    elements += made_dense == 0 && map.trained ? shape.units * shape.held_elements() : made_dense;
  }
  return elements;
}

}  // namespace moetune
