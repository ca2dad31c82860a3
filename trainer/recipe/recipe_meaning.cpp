#include "trainer/recipe/recipe_meaning.h"

#include <ATen/Context.h>

#include <algorithm>
#include <map>
#include <set>

#include "moe/inventory.h"
#include "parallel/base/error.h"

namespace moetune {

at::ScalarType scalar_type(ComputeType compute) {
  switch (compute) {
    case ComputeType::kBf16: return at::kBFloat16;
    case ComputeType::kFp32: return at::kFloat;
    case ComputeType::kFp64: return at::kDouble;
  }
  throw InternalError("a compute type of no value");
}

SlabTier slab_tier(OffloadTier tier) { return tier == OffloadTier::kHost ? SlabTier::kHost : SlabTier::kDevice; }

SlabTier tier_of_gradients(const OffloadRecipe& offload) {
  return slab_tier(offload.optimizer == OffloadTier::kNone ? OffloadTier::kNone : offload.gradients);
}

at::ScalarType gradient_dtype(const Recipe& recipe) {
  const at::ScalarType compute = scalar_type(recipe.model.compute);
  return recipe.train.gradients == GradientType::kBf16 && compute == at::kBFloat16 ? at::kBFloat16
                                                                                   : accumulate_dtype(compute);
}

AdapterTargets adapter_targets(const Recipe& recipe) {
  if (!recipe.adapter) return AdapterTargets();
  const AdapterRecipe& adapter = *recipe.adapter;
  AdapterTargets::Options options{adapter.targets, adapter.rank, adapter.alpha, adapter.rslora, adapter.dropout, {}};
  options.ranks.assign(adapter.ranks.begin(), adapter.ranks.end());
  options.layers = adapter.layers;
  options.experts = adapter.experts;
  return AdapterTargets(options);
}

std::optional<AdapterSpec> router_adapter(const Recipe& recipe) {
  if (!recipe.adapter || recipe.router.train != RouterTraining::kLora) return std::nullopt;
  const AdapterRecipe& adapter = *recipe.adapter;
  return AdapterSpec{adapter.rank, adapter_scale(adapter.alpha, adapter.rank, adapter.rslora), adapter.dropout};
}

TrainedParts trained_parts(const Recipe& recipe) {
  TrainedParts parts;
  if (!recipe.adapter && !recipe.train.parts) parts = TrainedParts::all();
  parts.narrow_experts(recipe.train.experts);
  const std::vector<std::string> words = model_part_words();
  for (const std::string& word : recipe.train.parts.value_or(std::vector<std::string>{})) {
    parts.add(static_cast<ModelPart>(std::find(words.begin(), words.end(), word) - words.begin()));
  }
  if (recipe.adapter && recipe.router.train == RouterTraining::kFull) parts.add(ModelPart::kRouter);
  return parts;
}

std::optional<ChoiceByLoad> choice_by_load(const Recipe& recipe) {
  using Kind = ExpertChoice::Kind;
  if (recipe.train.experts.kind == Kind::kTop) return ChoiceByLoad{"train.experts", recipe.train.experts.top};
  if (recipe.adapter && recipe.adapter->experts.kind == Kind::kTop) {
    return ChoiceByLoad{"adapter.experts", recipe.adapter->experts.top};
  }
  return std::nullopt;
}

bool trains_router(const Recipe& recipe) {
  return router_adapter(recipe).has_value() || trained_parts(recipe).has(ModelPart::kRouter);
}

bool freezes_maps(const Recipe& recipe, const Blueprint& blueprint) {
  const std::vector<LinearMap> maps =
      linear_maps(blueprint, recipe.mtp.trains(), /*targets=*/nullptr, trained_parts(recipe));
  return std::any_of(maps.begin(), maps.end(),
                     [](const LinearMap& map) { return map.held == Held::kLinear && map.is_held_frozen(); });
}

TrainedParts parts_beside_adapter(const Blueprint& blueprint) {
  TrainedParts parts = {ModelPart::kRouter, ModelPart::kNorms};
  if (!blueprint.tied_embeddings) parts.add(ModelPart::kEmbedding), parts.add(ModelPart::kHead);
  return parts;
}

void require_trained_parts(const Recipe& recipe, const Blueprint& blueprint) {
  if (!recipe.train.parts && recipe.train.experts.kind == ExpertChoice::Kind::kAll) return;
  std::string mistakes;
  const auto wrong = [&](const std::string& key, const std::string& what) {
    mistakes += str(mistakes.empty() ? "" : "\n", recipe.origin(key), ": ", key, ": ", what);
  };
  const bool with_mtp = recipe.mtp.trains();
  const TrainedParts parts = trained_parts(recipe), there = parts_of(blueprint, with_mtp);
  const std::vector<std::string> words = model_part_words();
  for (size_t i = 0; i < words.size(); ++i) {
    const auto part = static_cast<ModelPart>(i);
    if (!recipe.train.parts || !parts.has(part) || there.has(part)) continue;  // auto: those that there are
    wrong("train.parts", str(words[i], " is no part of this ", blueprint.model_type, "; it has ", to_string(there)));
  }
  if (blueprint.tied_embeddings && parts.has(ModelPart::kEmbedding) != parts.has(ModelPart::kHead)) {
    const bool head = parts.has(ModelPart::kHead);
    wrong("train.parts", str(head ? "head" : "embedding", " without ", head ? "embedding" : "head",
                             ", which are one tensor in this model (tie_word_embeddings); name both or neither"));
  }
  const ExpertChoice& experts = recipe.train.experts;
  std::string missing;
  for (const NumberRange& range : experts.ranges) {
    if (range.last >= blueprint.router.experts) missing += (missing.empty() ? "" : ", ") + to_string(range);
  }
  if (experts.top > blueprint.router.experts) missing = to_string(experts);
  if (!missing.empty()) {
    wrong("train.experts",
          str(missing, " is more than there is; a layer of the model has experts 0 to ", blueprint.router.experts - 1));
  }
  AdapterTargets targets = adapter_targets(recipe);
  std::map<std::string, std::set<std::string>> both;  // leaves by part
  for (const TensorSpec& tensor : blueprint.tensors(with_mtp)) {
    if (tensor.held != Held::kLinear || !parts.trains(tensor)) continue;
    if (targets.match(tensor.leaf(), tensor.group, tensor.layer, tensor.stack)) {
      both[tensor.group].insert(tensor.leaf());
    }
  }
  for (const auto& [part, leaves] : both) {
    std::string names;
    for (const std::string& leaf : leaves) names += str(names.empty() ? "" : ", ", leaf);
    wrong("train.parts", str(part, " would train itself, and adapter.targets (", recipe.origin("adapter.targets"),
                             ") gives ", names, " of it adapters; take the part or the targets out"));
  }
  if (!freezes_maps(recipe, blueprint)) {
    const std::string all = str("no linear map of this model is frozen with train.parts: ", to_string(parts));
    if (is_quantised(recipe.model.base)) {
      wrong("model.base", str(to_string(recipe.model.base), ": ", all, "; allowed then: bf16 or fp32"));
    }
    if (recipe.model.cache) wrong("model.cache", str(all, ", so that there is nothing to keep; take it out"));
  }
  if (!mistakes.empty()) throw UserError(mistakes);
}

MeshShape mesh_shape(const Recipe& recipe, const Blueprint& blueprint, int64_t world_size) {
  std::vector<std::string> mistakes;
  if (recipe.mesh.ep > 0 && blueprint.router.experts % recipe.mesh.ep != 0) {
    mistakes.push_back(str(recipe.origin("mesh.ep"), ": mesh.ep: ", recipe.mesh.ep, " ranks do not divide the model's ",
                           blueprint.router.experts, " routed experts"));
  }
  for (const std::string& mistake : cut_mistakes(blueprint, recipe.mesh.tp)) {
    mistakes.push_back(str(recipe.origin("mesh.tp"), ": mesh.tp: ", mistake));
  }
  const int64_t tp = recipe.mesh.tp, expert_tp = recipe.mesh.expert_tp;
  const std::string expert_place = str(recipe.origin("mesh.expert_tp"), ": mesh.expert_tp: ");
  if (expert_tp != 1 && expert_tp != tp) {
    mistakes.push_back(
        str(expert_place, expert_tp,
            tp > 1 ? str("; allowed is 1, or mesh.tp, which is ", tp) : str("; allowed is 1 where mesh.tp is 1")));
  }
  return resolve_mesh({recipe.mesh.pp, recipe.mesh.dp.value_or(0), recipe.mesh.ep, tp, expert_tp}, world_size,
                      std::move(mistakes));
}

BalanceSpec balance_spec(const Recipe& recipe, const Blueprint& blueprint) {
  const RouterRecipe& router = recipe.router;
  if (router.balance_loss > 0.0) return {BalanceKind::kSequence, router.balance_loss};
  try {
    return balance_of(router.balance.kind, router.balance.weight, blueprint.router);
  } catch (const UserError& error) {
    throw UserError(str(recipe.origin("router.balance.kind"), ": ", error.what()));
  }
}

void require_correction_bias(const Recipe& recipe, const Blueprint& blueprint) {
  if (recipe.router.bias != RouterBias::kUpdate || blueprint.router.correction_bias) return;
  throw UserError(str(recipe.origin("router.bias"),
                      ": router.bias: update moves a correction bias, which the router of ", blueprint.model_type,
                      " does not have; allowed here: frozen"));
}

void require_router_gradient(const Recipe& recipe, const Blueprint& blueprint) {
  const RouterSpec& router = blueprint.router;
  const bool constant =
      router.top_k == 1 && (router.normalise || router.scores == RouterSpec::Scores::kSoftmaxOfChosen);
  const bool by_parts = recipe.train.parts && trained_parts(recipe).has(ModelPart::kRouter);
  const bool trains = by_parts || recipe.router.train != RouterTraining::kNone;
  if (!trains || !constant || balance_spec(recipe, blueprint).is_on()) return;
  const bool by_key = recipe.router.train != RouterTraining::kNone;
  const std::string said = by_key
                               ? str(recipe.origin("router.train"), ": router.train: ", to_string(recipe.router.train))
                               : str(recipe.origin("train.parts"), ": train.parts: router");
  throw UserError(str(said, ": the router of ", blueprint.model_type,
                      " here chooses one expert and normalises its weight to 1, so that no loss but a balance loss "
                      "reaches it; take it out, or give a router.balance beside it"));
}

at::DeviceType device_type(const Recipe& recipe) {
  const bool cuda =
      recipe.run.device == DeviceChoice::kCuda || (recipe.run.device == DeviceChoice::kAuto && at::hasCUDA());
  return cuda ? at::kCUDA : at::kCPU;
}

KeptBlocks kept_blocks(const KeepLayers& keep, int64_t num_blocks) {
  switch (keep.kind) {
    case KeepLayers::Kind::kAttention: return {.attention = num_blocks};
    case KeepLayers::Kind::kExperts: return {.attention = num_blocks, .experts = num_blocks};
    case KeepLayers::Kind::kAll: return KeptBlocks::whole(num_blocks);
    case KeepLayers::Kind::kCount: return KeptBlocks::whole(std::min(num_blocks, keep.num_layers));
    case KeepLayers::Kind::kAuto:
    case KeepLayers::Kind::kNone: return {};
  }
  throw InternalError("keep of no kind");
}

bool saves_beside_training(const CheckpointRecipe& checkpoint, int64_t bytes, bool room) {
  constexpr int64_t kWrittenAtOnce = int64_t{64} << 20;  // a disk takes it in a fraction of a second
  if (checkpoint.async != AsyncSave::kAuto) return checkpoint.async == AsyncSave::kTrue;
  // What is saved at the end alone has nothing beside it.
  const bool during_training = checkpoint.every_steps > 0 || checkpoint.every_minutes > 0.0 || checkpoint.keep_best > 0;
  return during_training && room && bytes > kWrittenAtOnce;
}

int64_t automatic_slice_tokens(at::Device device) { return device.is_cuda() ? 8192 : 2048; }

}  // namespace moetune
