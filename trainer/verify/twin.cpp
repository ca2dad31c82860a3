#include "trainer/verify/twin.h"

#include <algorithm>

#include "lora/adapters/counter_random.h"

namespace moetune {
namespace {

constexpr int64_t kSteps = 3;  // gradients of A are zero in the first: B starts at zero
constexpr int64_t kMaxTokens = 24;
constexpr int64_t kSequences = 6;  // over four data ranks the shares differ, over eight some have none
constexpr int64_t kVocab = 250;    // four parts: 63, 63, 63, 61

ModelConfig small(const ModelConfig& c) {
  ModelConfig config = c;
  config.vocab = kVocab;
  config.width = 128;
  config.dense_width = 256;
  config.expert_width = 256;
  config.num_layers = 3;
  config.num_dense_layers = std::min<int64_t>(c.num_dense_layers, 1);
  config.heads = 8;
  if (c.q_lora) config.q_lora = 64;
  config.kv_lora = 64;
  config.nope_dim = 16;
  config.rope_dim = config.rope.dim = 8;
  config.value_dim = 32;
  // Four experts a group at the least: the best two of a group are then a choice.
  config.experts = std::max<int64_t>(16, 4 * c.num_groups);
  config.shared_experts = std::min<int64_t>(c.shared_experts, 1);
  config.top_k = std::min(c.top_k, config.experts / config.num_groups * config.top_groups);
  config.initializer_range = 0.08;  // as large as makes every layer matter at these widths
  config.fp8_blocks = false;
  config.num_mtp_layers = std::min<int64_t>(c.num_mtp_layers, 1);
  return config;
}

Recipe small(const Recipe& given) {
  Recipe recipe = given;
  recipe.run.device = DeviceChoice::kAuto;
  recipe.run.check_replicas_every = 0;  // the table is to say what differs
  recipe.model.weights = WeightOrigin::kRandom;
  recipe.model.compute = ComputeType::kFp64;
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
  recipe.offload = {{OffloadFrozen::Kind::kNone, 0}, ActivationTier::kNone};
  recipe.exchange.buffer_rows.reset();
  return recipe;
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

Twin make_twin(const Recipe& recipe, const ModelConfig& config) {
  return {small(recipe), small(config), random_documents(static_cast<uint64_t>(recipe.run.seed)), kSteps};
}

}  // namespace moetune
