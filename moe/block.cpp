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
                 bool balance, const PassContext& pass, KeptMixing* kept) const {
  const TraceRange range("mixing");
  at::Tensor normed_TD = rms_norm(x_TD, parts_.input_norm, eps_);
  Mixed mixed;
  const at::Tensor known_TD = kept != nullptr ? kept->residual_TD : at::Tensor();
  const at::Tensor attended_TD =
      parts_.attention->forward(normed_TD, slice, angles, pass.random, kept != nullptr ? &kept->attention : nullptr,
                                known_TD.defined() ? Wanted::kGraph : Wanted::kNumbers);
  const NormedSum residual = add_rms_norm(x_TD, attended_TD, parts_.post_attention_norm, eps_, known_TD);
  if (kept != nullptr && !known_TD.defined()) kept->residual_TD = residual.sum;
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

void Block::add_mlp(Mixed& mixed, const Slice& slice, const PassContext& pass, Wanted wanted) const {
  const TraceRange range("mlp");
  if (parts_.mlp) {
    const at::Tensor mlp_TD = parts_.mlp->forward(mixed.z_TD, slice, pass.random, wanted);
    if (wanted == Wanted::kNumbers) mixed.residual_TD = mixed.residual_TD + mlp_TD;
    else mixed.mlp_TD = mlp_TD;
  }
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
  BlockCost cost;
  cost.is_moe = std::any_of(maps.begin(), maps.end(), [](const LinearMap& map) { return map.stack > 0; });
  const PartCost attention = of_attention(spec, dense, D, traits),
                 mlp = swiglu_mlp_cost(dense, D, cost.is_moe && blueprint.experts.shared_gate, traits);
  const bool has_mlp = dense.outputs("gate_proj") > 0;
  // The residual behind attention, which its norm keeps, and that behind the MLP; z, which MLP and experts read.
  int64_t saved = D + (has_mlp ? D : 0);
  if (cost.is_moe || dense.keeps_input("gate_proj") || dense.keeps_input("up_proj")) saved += D;
  cost.saved = saved * size + 2 * traits.wide_bytes() + attention.saved + mlp.saved;
  cost.mixing = std::max(attention.transient, mlp.transient);
  cost.mixing_of_long = std::max(attention.transient_of_long, mlp.transient_of_long);
  cost.kept_attention = D * size + attention.kept;
  cost.tensor_axis_calls = attention.tensor_axis_calls + mlp.tensor_axis_calls;
  cost.tensor_axis_calls_again = attention.tensor_axis_calls_again + mlp.tensor_axis_calls_again;
  // Two norms, the first residual's sum in the second one's pass; the MLP's sum.
  cost.forward.touched_bytes = static_cast<double>(size * (6 + (has_mlp ? 3 : 0)) * D);
  cost.backward.touched_bytes = static_cast<double>(size * 7 * D);
  cost.again.touched_bytes = static_cast<double>(size * 6 * D);
  for (const PartCost* part : {&attention, &mlp}) {
    cost.forward.add(part->forward);
    cost.backward.add(part->backward);
    cost.again.add(part->forward).add(part->not_again, -1.0);
  }
  cost.spared_by_attention = attention.spared_where_kept;
  cost.spared_by_attention.touched_bytes += static_cast<double>(size * 2 * D);  // the residual is no sum
  if (!cost.is_moe) return cost;
  const PartCost router = router_cost(blueprint.router, D, traits);
  cost.saved += router.saved;
  cost.forward.add(router.forward);
  cost.backward.add(router.backward);
  cost.experts = routed_experts_cost(blueprint, maps, traits);
  cost.forward.add(cost.experts.forward);
  cost.backward.add(cost.experts.backward);
  cost.again.add(router.forward).add(cost.experts.again);
  cost.spared_by_experts = cost.experts.again;
  return cost;
}

Work BlockCost::again_where(Keep keep) const {
  if (keep == Keep::kAll) return {};
  Work work = again;
  if (keep >= Keep::kAttention) work.add(spared_by_attention, -1.0);
  if (keep >= Keep::kExperts) work.add(spared_by_experts, -1.0);
  return work;
}

int64_t BlockCost::calls_again_where(Keep keep) const {
  if (keep == Keep::kAll || tensor_axis_calls == 0) return 0;
  return tensor_axis_calls_again - (keep >= Keep::kAttention ? 1 : 0);
}

int64_t BlockCost::kept_bytes(Keep keep, int64_t rows, int64_t received, int64_t routed) const {
  if (keep == Keep::kNothing) return 0;
  const bool all = keep == Keep::kAll;
  const int64_t mixing = rows * (all ? saved : kept_attention);
  if (!is_moe || keep == Keep::kAttention) return mixing;
  return mixing + routed * experts.kept + received * (all ? experts.kept_received : experts.kept_received_alone);
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
