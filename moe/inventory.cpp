#include "moe/inventory.h"

#include <algorithm>
#include <set>

#include "parallel/base/ceil_div.h"
#include "parallel/base/error.h"

namespace moetune {
MatrixCut TensorParts::cut_of(const TensorSpec& tensor, int64_t index) const {
  MatrixCut cut{tensor.cut, index, of(tensor)};
  if (tensor.cut_heads > 0 && cut.parts > tensor.cut_heads) {
    cut.copies = cut.parts / tensor.cut_heads;
    cut.parts = tensor.cut_heads;
    cut.index = index / cut.copies;
    cut.copy = index % cut.copies;
  }
  if (tensor.cut_features > 0 && tensor.cut != MatrixCut::Dim::kNone) {
    // A joint map has two outputs a feature, which stay together.
    const int64_t size = tensor.shape.at(tensor.cut == MatrixCut::Dim::kInputs ? 1 : 0);
    cut.granule = cut_granule(base, tensor.cut_features, cut.parts) * (size / tensor.cut_features);
  }
  return cut;
}

MatrixCut TensorParts::cut_without_copies(const TensorSpec& tensor, int64_t index) const {
  const MatrixCut cut = cut_of(tensor, index);
  return cut.copies > 1 ? MatrixCut{MatrixCut::Dim::kNone, index, of(tensor)} : cut;
}

MatrixCut TensorParts::expert_features(const Blueprint& blueprint, int64_t index) const {
  return {MatrixCut::Dim::kOutputs, index, experts, cut_granule(base, blueprint.experts.width, experts)};
}

LinearMap linear_map(const TensorSpec& tensor, AdapterTargets* targets, const TrainedParts& parts) {
  LinearMap map{tensor, tensor.shape.at(0), tensor.shape.at(1), std::nullopt, parts.trains(tensor)};
  if (map.trained) map.trained_experts = parts.experts_of(tensor);
  if (targets != nullptr && tensor.held == Held::kLinear) {
    map.adapter = targets->match(tensor.leaf(), tensor.group, tensor.layer, tensor.stack);
  }
  MT_CHECK(!map.adapter || !map.trained, tensor.name, " trains itself and has an adapter");
  return map;
}

LinearMap LinearMap::part(const MatrixCut& held) const {
  LinearMap map = *this;
  map.outputs = held.outputs(outputs);
  map.inputs = held.inputs(inputs);
  return map;
}

std::vector<LinearMap> block_maps(const Blueprint& blueprint, LayerId layer, AdapterTargets* targets,
                                  const TrainedParts& parts) {
  std::vector<LinearMap> maps;
  for (const TensorSpec& tensor : blueprint.block_tensors(layer)) {
    if (tensor.held == Held::kLinear) maps.push_back(linear_map(tensor, targets, parts));
  }
  return maps;
}

std::vector<std::string> cut_mistakes(const Blueprint& blueprint, int64_t parts) {
  std::vector<std::string> mistakes;
  if (parts <= 1) return mistakes;
  std::set<std::string> seen;
  auto divide = [&](int64_t number, const char* what, bool copied = false) {
    if (number % parts == 0 || (copied && parts % number == 0)) return;
    const std::string mistake = str(parts, " ranks do not divide the model's ", number, " ", what);
    if (seen.insert(mistake).second) mistakes.push_back(mistake);
  };
  for (const LayerSpec& layer : blueprint.layers) {
    divide(layer.attention.heads, "attention heads");
    divide(layer.attention.kv_heads, "heads of keys and values",
           layer.attention.kind == AttentionSpec::Kind::kGroupedQuery);
  }
  if ((parts - 1) * ceil_div(blueprint.vocab, parts) >= blueprint.vocab) {
    mistakes.push_back(str("a vocabulary of ", blueprint.vocab, " leaves some of ", parts, " ranks without a token"));
  }
  return mistakes;
}

LinearMap mtp_projection(const Blueprint& blueprint, const TrainedParts& parts) {
  for (const TensorSpec& tensor : blueprint.tensors(/*with_mtp=*/true)) {
    if (tensor.role == TensorRole::kMtpProjection) return linear_map(tensor, nullptr, parts);
  }
  throw InternalError("a blueprint without the MTP module's projection");
}

std::vector<LinearMap> linear_maps(const Blueprint& blueprint, bool with_mtp, AdapterTargets* targets,
                                   const TrainedParts& parts) {
  std::vector<LinearMap> all;
  for (const LayerId layer : blueprint.blocks(with_mtp)) {
    for (LinearMap& map : block_maps(blueprint, layer, targets, parts)) all.push_back(std::move(map));
  }
  if (with_mtp) all.push_back(mtp_projection(blueprint, parts));
  return all;
}

BaseFormat held_format(const LinearMap& map, BaseFormat base) {
  if (map.held != Held::kJoint) return base;
  return base == BaseFormat::kFp32 ? BaseFormat::kFp32 : BaseFormat::kBf16;
}

std::vector<TensorSpec> plain_tensors(const Blueprint& blueprint, bool with_mtp) {
  std::vector<TensorSpec> plain;
  for (TensorSpec& tensor : blueprint.tensors(with_mtp)) {
    if (tensor.held == Held::kLinear || tensor.held == Held::kJoint || tensor.may_be_shared) continue;
    plain.push_back(std::move(tensor));
  }
  return plain;
}

namespace {

bool has_vocabulary(const TensorSpec& plain) {
  return plain.role == TensorRole::kEmbedding || plain.role == TensorRole::kHead;
}

/// Of all plain tensors, uncut, with so many experts of each layer.
int64_t plain_numbers(const Blueprint& blueprint, bool with_mtp, int64_t experts) {
  int64_t total = 0;
  for (const TensorSpec& tensor : plain_tensors(blueprint, with_mtp)) total += held_numbers(tensor, {}, experts);
  return total;
}

}  // namespace

bool is_cut(const TensorSpec& plain, const TensorParts& parts) {
  return has_vocabulary(plain) ? parts.of(plain) > 1 : parts.cut_without_copies(plain).cuts_outputs();
}

int64_t held_numbers(const TensorSpec& plain, const TensorParts& parts, int64_t experts) {
  const int64_t rows = has_vocabulary(plain) ? ceil_div(plain.shape[0], parts.of(plain))
                                             : parts.cut_without_copies(plain).outputs(plain.shape[0]);
  return (plain.stack > 0 ? experts : 1) * rows * (plain.numel() / plain.shape[0]);
}

int64_t count_parameters(const Blueprint& blueprint, bool with_mtp) {
  int64_t total = plain_numbers(blueprint, with_mtp, blueprint.router.experts);
  for (const LinearMap& map : linear_maps(blueprint, with_mtp)) {
    total += map.units(blueprint.router.experts) * map.outputs * map.inputs;
  }
  return total;
}

int64_t count_active_parameters(const Blueprint& blueprint) {
  int64_t total = plain_numbers(blueprint, false, blueprint.router.top_k);
  for (const LinearMap& map : linear_maps(blueprint, false)) {
    total += map.units(blueprint.router.top_k) * map.outputs * map.inputs;
  }
  return total;
}

}  // namespace moetune
