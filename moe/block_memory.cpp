#include "moe/block_memory.h"

#include <algorithm>

namespace moetune {
namespace {

// Documents of unequal length share a batch, padded by up to an eighth (moe/attention/slice.cpp).
int64_t padded(int64_t elements) { return elements + elements / 8; }

/// Which inputs of the block's maps autograd keeps.
class Kept {
 public:
  Kept(const std::vector<LinearMap>& maps, bool train_weights) : maps_(maps), train_weights_(train_weights) {}

  bool input_of(const std::string& leaf) const {
    return std::any_of(maps_.begin(), maps_.end(), [&](const LinearMap& map) {
      return map.stack == 0 && map.leaf() == leaf && (train_weights_ || map.adapter);
    });
  }
  /// Elements a row that the adapters of mixing keep: x A^T, and under dropout their own input and its mask.
  int64_t of_adapters() const {
    int64_t elements = 0;
    for (const LinearMap& map : maps_) {
      if (map.stack > 0 || !map.adapter) continue;
      elements += map.adapter->rank + (map.adapter->dropout > 0.0 ? 2 * map.inputs : 0);
    }
    return elements;
  }
  bool adapts_experts() const {
    return std::any_of(maps_.begin(), maps_.end(), [](const LinearMap& map) { return map.stack > 0 && map.adapter; });
  }

 private:
  const std::vector<LinearMap>& maps_;
  bool train_weights_;
};

/// Of attention, in elements a row.
struct AttentionElements {
  int64_t saved = 0;  ///< of the maps' inputs and outputs, of queries, keys, values and their product
  int64_t mixing = 0;
};

AttentionElements latent_elements(const AttentionSpec& a, const Kept& keeps, int64_t D, const PassTraits& traits) {
  const int64_t P = traits.parts.dense;
  const int64_t qk = a.heads * a.key_dim(), kv = a.heads * (a.nope_dim + a.value_dim), value = a.heads * a.value_dim;
  // On a CPU values are padded to the width of the keys, and the product is as wide.
  const int64_t attended = traits.device == at::kCPU ? a.heads * std::max(a.key_dim(), a.value_dim) : value;
  AttentionElements elements;
  if (keeps.input_of("q_a_proj") || keeps.input_of("q_proj") || keeps.input_of("kv_a_proj_with_mqa")) {
    elements.saved += D;
  }
  // Latents before their norms; after them as the maps to the heads read them, gathered with the rotary key as one
  // matrix.
  elements.saved += a.q_lora.value_or(0) + a.kv_lora + a.rotary_dim;
  const bool keeps_q = keeps.input_of("q_b_proj"), keeps_kv = keeps.input_of("kv_b_proj");
  if (P == 1) {
    elements.saved += (keeps_q ? a.q_lora.value_or(0) : 0) + (keeps_kv ? a.kv_lora : 0);
  } else if (keeps_q || keeps_kv || keeps.input_of("q_proj")) {
    elements.saved += P * (a.q_lora.value_or(D) + a.kv_lora + a.rotary_dim);
  }
  // queries, keys, values, product; rows of the product
  elements.saved += padded(2 * qk + 2 * attended) + (keeps.input_of("o_proj") ? value : 0);
  elements.mixing = 4 * qk + 2 * kv;
  return elements;
}

AttentionElements grouped_elements(const AttentionSpec& a, const Kept& keeps, int64_t D, const PassTraits& traits) {
  const int64_t P = traits.parts.dense;
  // More ranks than key heads have one each.
  const int64_t G = std::max(a.kv_heads, P);
  const int64_t q = a.heads * a.key_dim(), k = G * a.key_dim(), v = G * a.value_dim, out = a.heads * a.value_dim;
  AttentionElements elements;
  if (keeps.input_of("q_proj") || keeps.input_of("k_proj") || keeps.input_of("v_proj")) {
    elements.saved += P > 1 ? P * D : D;
  }
  // Where a GPU's kernel knows no groups, keys and values are repeated for the queries that read them.
  const bool repeated = traits.device != at::kCPU && (c10::elementSize(traits.compute) > 2 || a.key_dim() > 256);
  elements.saved += padded(q + out + (repeated ? q + out : k + v)) + (keeps.input_of("o_proj") ? out : 0);
  switch (a.head_norm) {
    case AttentionSpec::HeadNorm::kNone: break;
    case AttentionSpec::HeadNorm::kPerHead:
    case AttentionSpec::HeadNorm::kWeightlessAfterwards: elements.saved += q + k; break;
    // Over a tensor axis the norm is made of plain operations, which keep it wide too.
    case AttentionSpec::HeadNorm::kAllHeads: elements.saved += (P > 1 ? 4 : 1) * (q + k); break;
  }
  elements.mixing = 4 * (q + k) + 2 * v + 2 * P * D;
  return elements;
}

}  // namespace

BlockMemory block_memory(const Blueprint& blueprint, const std::vector<LinearMap>& maps, const PassTraits& traits) {
  const AttentionSpec& a = blueprint.layer(maps.at(0).layer).attention;
  const Kept keeps(maps, traits.train_weights);
  const int64_t size = static_cast<int64_t>(c10::elementSize(traits.compute));
  const int64_t wide = static_cast<int64_t>(c10::elementSize(accumulate_dtype(traits.compute)));
  const int64_t D = blueprint.width, E = blueprint.router.experts, K = blueprint.router.top_k, P = traits.parts.dense;
  const bool moe = std::any_of(maps.begin(), maps.end(), [](const LinearMap& map) { return map.stack > 0; });
  int64_t mlp = 0;  // width of the dense MLP or of the shared expert
  for (const LinearMap& map : maps) {
    if (map.stack == 0 && map.leaf() == "gate_proj") mlp = P * map.part(traits.parts).outputs;
  }
  const bool latent = a.kind == AttentionSpec::Kind::kLatent;
  const AttentionElements attention =
      latent ? latent_elements(a, keeps, D, traits) : grouped_elements(a, keeps, D, traits);

  // residual and the input of the second norm
  int64_t saved = 2 * D;
  if (moe) saved += D;  // z, which the experts read
  else if (P == 1 && (keeps.input_of("gate_proj") || keeps.input_of("up_proj"))) saved += D;
  if (P > 1 && (keeps.input_of("gate_proj") || keeps.input_of("up_proj"))) saved += P * D;
  saved += attention.saved;
  // gate, up, silu(gate), and their product
  saved += mlp * (keeps.input_of("down_proj") ? 4 : 3);
  saved += keeps.of_adapters();

  BlockMemory memory;
  // log-sum-exp of each head; a number for each norm
  memory.saved = saved * size + (a.heads + 4) * wide;
  memory.mixing = size * std::max(attention.mixing, 4 * mlp + 2 * P * D);
  if (!moe) return memory;
  // Scores; of the chosen experts: numbers as int64, scores before and after normalising, weights.
  memory.saved += E * wide * (traits.balance_loss ? 4 : 1) + K * (8 + 3 * wide + size);
  if (traits.trains_router && size < wide) memory.saved += D * wide;
  // Gradient of the rows; copies of rows and of their gradients where they came from other ranks; slot and weight of
  // each routed row.
  memory.received = size * D * (traits.exchanged ? 3 : 1) + K * (8 + size);
  const int64_t F = traits.parts.expert_features(blueprint).outputs(blueprint.experts.width);
  const int64_t in_down = 2 * D + 7 * F, in_gate_and_up = (keeps.adapts_experts() ? 5 : 4) * D + 6 * F;
  memory.expert = size * std::max(in_down, in_gate_and_up) + 8 + size;  // and row and weight of each
  memory.kept_expert = size * 2 * F + 8 + size;
  return memory;
}

int64_t experts_at_a_time(const Blueprint& blueprint, at::ScalarType compute, int64_t chunk_bytes,
                          int64_t local_experts, const TensorParts& parts) {
  const int64_t width = parts.expert_features(blueprint).outputs(blueprint.experts.width),
                expert_bytes = 3 * width * blueprint.width * static_cast<int64_t>(c10::elementSize(compute));
  return std::min(local_experts, std::max<int64_t>(1, chunk_bytes / expert_bytes));
}

int64_t block_scratch_elements(const std::vector<LinearMap>& maps, const TensorParts& parts, at::ScalarType compute,
                               int64_t chunk_experts) {
  int64_t elements = 0;
  for (const LinearMap& map : maps) {
    const FrozenShape shape{held_format(map, parts.base), map.units(chunk_experts), map.outputs, map.inputs,
                            parts.cut_of(map)};
    elements += shape.scratch_elements(compute);
  }
  return elements;
}

}  // namespace moetune
