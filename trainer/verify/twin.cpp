#include "trainer/verify/twin.h"

#include <algorithm>
#include <cmath>

#include "lora/adapters/counter_random.h"

namespace moetune {
namespace {

constexpr int64_t kSteps = 3;  // gradients of A are zero in the first: B starts at zero
constexpr int64_t kMaxTokens = 24;
constexpr int64_t kSequences = 6;  // over four data ranks the shares differ, over eight some have none
constexpr int64_t kVocab = 250;    // four parts: 63, 63, 63, 61
constexpr int64_t kHeads = 8;
constexpr size_t kLayers = 4;  // a pipeline's stage each, at the most

AttentionSpec small(const AttentionSpec& given) {
  AttentionSpec attention = given;
  attention.heads = kHeads;
  if (given.kind == AttentionSpec::Kind::kLatent) {
    attention.kv_heads = kHeads;
    if (given.q_lora) attention.q_lora = 64;
    attention.kv_lora = 64;
    attention.nope_dim = 16;
    attention.rotary_dim = 8;
  } else {
    attention.kv_heads = given.kv_heads < given.heads ? kHeads / 4 : kHeads;  // tp 4: two ranks have the same
    attention.rotary_dim = given.rotary_dim == 0 ? 0 : given.nope_dim == 0 ? 32 : 16;
    attention.nope_dim = 32 - attention.rotary_dim;
  }
  attention.value_dim = 32;
  attention.softmax_scale *= std::sqrt(static_cast<double>(given.key_dim()) / static_cast<double>(attention.key_dim()));
  if (given.mask.kind != MaskSpec::Kind::kCausal) attention.mask.size = kMaxTokens / 3;
  if (given.temperature_scale > 0.0) attention.temperature_floor = 5;
  return attention;
}

/// The first layer of each kind, and more of the last kind where that makes fewer than kLayers.
std::vector<LayerSpec> some_of_each(const std::vector<LayerSpec>& given) {
  std::vector<LayerSpec> layers;
  for (const LayerSpec& layer : given) {
    if (std::find(layers.begin(), layers.end(), layer) == layers.end()) layers.push_back(layer);
  }
  while (layers.size() < kLayers) layers.push_back(layers.back());
  return layers;
}

Blueprint small(const Blueprint& given) {
  Blueprint model = given;
  model.vocab = kVocab;
  model.width = 128;
  model.layers = some_of_each(given.layers);
  for (LayerSpec& layer : model.layers) {
    layer.attention = small(layer.attention);
    // Five NF4 blocks, which no mesh of several ranks divides.
    if (!layer.has_experts()) layer.dense_width = 320;
  }
  model.num_mtp_layers = std::min<int64_t>(given.num_mtp_layers, 1);
  if (model.num_mtp_layers > 0) model.mtp_layer.attention = small(given.mtp_layer.attention);
  for (const LayerSpec& layer : model.layers) {
    if (layer.attention.rotary_dim > 0) model.rotary.dim = layer.attention.rotary_dim;
  }
  // Four experts a group at the least: the best two of a group are then a choice.
  model.router.experts = std::max<int64_t>(16, 4 * given.router.num_groups);
  model.router.top_k =
      std::min(given.router.top_k, model.router.experts / model.router.num_groups * model.router.top_groups);
  model.experts.width = 320;
  model.experts.shared_width = given.experts.shared_width > 0 ? 320 : 0;
  model.initializer_range = 0.08;  // as large as makes every layer matter at these widths
  model.fp8_blocks = false;
  return model;
}

Recipe small(const Recipe& given) {
  Recipe recipe = given;
  recipe.run.device = DeviceChoice::kAuto;
  recipe.run.check_replicas_every = 0;  // the table is to say what differs
  recipe.model.weights = WeightOrigin::kRandom;
  recipe.model.compute = ComputeType::kFp64;
  recipe.train.gradients = GradientType::kFp32;
  recipe.train.optimizer.rounding = Rounding::kNearest;
  recipe.model.cache.reset();
  if (recipe.adapter) {
    AdapterRecipe& adapter = *recipe.adapter;
    const double scale = adapter.alpha / static_cast<double>(adapter.rank);
    const auto shrink = [](int64_t rank) { return std::min<int64_t>(rank, 5); };
    adapter.rank = shrink(adapter.rank);
    adapter.alpha = scale * static_cast<double>(adapter.rank);
    for (auto& [name, rank] : adapter.ranks) rank = shrink(rank);
    adapter.from.reset();
  }
  recipe.data.max_tokens = kMaxTokens;
  recipe.data.packing = true;
  recipe.train.batch = kSequences;
  recipe.train.steps = kSteps;
  recipe.train.epochs.reset();
  recipe.train.slice_tokens = kMaxTokens;
  recipe.train.optimizer.lr = 1e-2;  // three steps must show
  recipe.router.bias_rate = 0.01;
  recipe.offload = {{OffloadFrozen::Kind::kNone, 0}, OffloadTier::kNone, OffloadTier::kNone};
  recipe.exchange.buffer_rows.reset();
  return recipe;
}

/// As many experts as are chosen, of layers with `num`: the first of each half, so that of two ranks both hold some.
void narrow(ExpertChoice& experts, int64_t num) {
  if (experts.kind == ExpertChoice::Kind::kAll) return;
  const int64_t wanted = std::min(experts.of_stack().count(num), num), first = (wanted + 1) / 2;
  experts = {ExpertChoice::Kind::kListed, {{0, first - 1}}, 0};
  if (wanted > first) experts.ranges.push_back({num / 2, num / 2 + wanted - first - 1});
}

/// The twin's layers that stand for the given model's are the first of each kind; what narrows the targets there picks
/// those of the kinds that it picks here, and as many experts, so that some ranks hold none.
void narrow(AdapterRecipe& adapter, const Blueprint& given, const Blueprint& twin) {
  if (!adapter.layers.all) {
    std::vector<NumberRange> ranges;
    for (int64_t layer = 0; layer < twin.num_layers(); ++layer) {
      for (int64_t of_given = 0; of_given < given.num_layers(); ++of_given) {
        LayerSpec alike = given.layers[of_given];
        alike.attention = small(alike.attention);
        if (!alike.has_experts()) alike.dense_width = twin.layers[layer].dense_width;
        if (!adapter.layers.holds(LayerId::block(of_given)) || alike != twin.layers[layer]) continue;
        ranges.push_back({layer, layer});
        break;
      }
    }
    adapter.layers.ranges = ranges;
  }
  narrow(adapter.experts, twin.router.experts);
}

/// Documents of 2 to kMaxTokens tokens; the first third of each is no target.
Documents random_documents(uint64_t seed) {
  constexpr int64_t kDocuments = 4 * kSequences;
  const at::Tensor lengths = counter_uniform(stream_key(seed, "twin/lengths"), 0, kDocuments, at::kCPU);
  std::vector<int32_t> tokens, labels;
  std::vector<int64_t> offsets{0};
  for (int64_t i = 0; i < kDocuments; ++i) {
    const auto length = 2 + static_cast<int64_t>(lengths[i].item<float>() * (kMaxTokens - 1));
    const at::Tensor ids =
        (counter_uniform(stream_key(stream_key(seed, "twin/tokens"), i), 0, length, at::kCPU) * kVocab).to(at::kInt);
    for (int64_t t = 0; t < length; ++t) {
      tokens.push_back(ids[t].item<int32_t>());
      labels.push_back(t < length / 3 ? kNotTrained : tokens.back());
    }
    offsets.push_back(static_cast<int64_t>(tokens.size()));
  }
  return Documents("the twin's documents", kVocab, std::move(tokens), std::move(labels), std::move(offsets), {});
}

}  // namespace

Twin make_twin(const Recipe& recipe, const Blueprint& blueprint) {
  Twin twin{small(recipe), small(blueprint), random_documents(static_cast<uint64_t>(recipe.run.seed)), kSteps};
  if (twin.recipe.adapter) narrow(*twin.recipe.adapter, blueprint, twin.blueprint);
  narrow(twin.recipe.train.experts, twin.blueprint.router.experts);
  return twin;
}

}  // namespace moetune
