#include "moe/inventory.h"

#include <algorithm>
#include <set>

#include "parallel/base/ceil_div.h"
#include "parallel/base/error.h"

namespace moetune {
namespace {

/// What borders of blocks forbid of cutting those maps, dense or stacked, into `parts`; layers are alike.
void add_block_mistakes(const Blueprint& blueprint, BaseFormat base, int64_t parts, bool stacked,
                        std::vector<std::string>& mistakes) {
  std::set<std::string> seen;
  for (const LinearMap& map : linear_maps(blueprint, false)) {
    if (map.cut == MatrixCut::Dim::kNone || (map.stack > 0) != stacked) continue;
    const std::string path = map.module().substr(str("model.layers.", map.layer.number(), ".").size());
    if (!seen.insert(path).second) continue;
    try {
      FrozenShape{base, 1, map.outputs, map.inputs, {map.cut, 0, parts}}.check();
    } catch (const UserError& error) {
      mistakes.push_back(str(path, ": ", error.what()));
    }
  }
}

}  // namespace

LinearMap linear_map(const TensorSpec& tensor) {
  return {tensor, tensor.shape.at(0), tensor.shape.at(1), std::nullopt};
}

LinearMap LinearMap::part(const TensorParts& parts) const {
  const MatrixCut held{cut, 0, parts.of(*this)};
  LinearMap map = *this;
  map.outputs = held.outputs(outputs);
  map.inputs = held.inputs(inputs);
  return map;
}

std::vector<LinearMap> block_maps(const Blueprint& blueprint, LayerId layer, AdapterTargets* targets) {
  std::vector<LinearMap> maps;
  for (const TensorSpec& tensor : blueprint.block_tensors(layer)) {
    if (tensor.held != Held::kLinear) continue;
    maps.push_back(linear_map(tensor));
    if (targets != nullptr) maps.back().adapter = targets->match(tensor.leaf(), tensor.group);
  }
  return maps;
}

std::vector<std::string> cut_mistakes(const Blueprint& blueprint, BaseFormat base, int64_t parts) {
  std::vector<std::string> mistakes;
  if (parts <= 1) return mistakes;
  std::set<std::string> seen;
  bool even = true;
  auto divide = [&](int64_t number, const char* what) {
    if (number % parts == 0) return;
    even = false;
    const std::string mistake = str(parts, " ranks do not divide the model's ", number, " ", what);
    if (seen.insert(mistake).second) mistakes.push_back(mistake);
  };
  for (const LayerSpec& layer : blueprint.layers) {
    divide(layer.attention.heads, "attention heads");
    divide(layer.attention.kv_heads, "heads of keys and values");
    divide(layer.dense_width, "features of a dense MLP (intermediate_size)");
  }
  divide(blueprint.experts.shared_width, "features of the shared expert");
  if ((parts - 1) * ceil_div(blueprint.vocab, parts) >= blueprint.vocab) {
    mistakes.push_back(str("a vocabulary of ", blueprint.vocab, " leaves some of ", parts, " ranks without a token"));
  }
  if (even) add_block_mistakes(blueprint, base, parts, /*stacked=*/false, mistakes);
  return mistakes;
}

std::vector<std::string> expert_cut_mistakes(const Blueprint& blueprint, BaseFormat base, int64_t parts) {
  if (parts <= 1) return {};
  if (blueprint.experts.width % parts != 0) {
    return {str(parts, " ranks do not divide the model's ", blueprint.experts.width,
                " features of an expert (moe_intermediate_size)")};
  }
  std::vector<std::string> mistakes;
  add_block_mistakes(blueprint, base, parts, /*stacked=*/true, mistakes);
  return mistakes;
}

LinearMap mtp_projection(const Blueprint& blueprint) {
  for (const TensorSpec& tensor : blueprint.tensors(/*with_mtp=*/true)) {
    if (tensor.role == TensorRole::kMtpProjection) return linear_map(tensor);
  }
  throw InternalError("a blueprint without the MTP module's projection");
}

std::vector<LinearMap> linear_maps(const Blueprint& blueprint, bool with_mtp, AdapterTargets* targets) {
  std::vector<LinearMap> all;
  for (const LayerId layer : blueprint.blocks(with_mtp)) {
    for (LinearMap& map : block_maps(blueprint, layer, targets)) all.push_back(std::move(map));
  }
  if (with_mtp) all.push_back(mtp_projection(blueprint));
  return all;
}

BaseFormat held_format(const LinearMap& map, BaseFormat base) {
  if (map.held != Held::kJoint) return base;
  return base == BaseFormat::kFp32 ? BaseFormat::kFp32 : BaseFormat::kBf16;
}

PlainNumbers plain_numbers(const Blueprint& blueprint, bool with_mtp, TensorParts parts, int64_t local_experts) {
  PlainNumbers numbers;
  for (const TensorSpec& tensor : blueprint.tensors(with_mtp)) {
    if (tensor.held == Held::kLinear || tensor.held == Held::kJoint || tensor.may_be_shared) continue;
    const bool vocabulary = tensor.role == TensorRole::kEmbedding || tensor.role == TensorRole::kHead;
    const bool cut = vocabulary || tensor.cut == MatrixCut::Dim::kOutputs;
    const int64_t rows = cut ? ceil_div(tensor.shape[0], parts.of(tensor)) : tensor.shape[0];
    const int64_t units = tensor.stack > 0 ? (local_experts > 0 ? local_experts : tensor.stack) : 1;
    const int64_t count = units * rows * (tensor.numel() / tensor.shape[0]);
    if (tensor.role == TensorRole::kEmbedding) numbers.embedding += count;
    else if (tensor.role == TensorRole::kHead) numbers.head += count;
    else if (tensor.held == Held::kBias) numbers.router_bias += count;
    else if (tensor.group == "router") numbers.router += count;
    else if (tensor.group == "norms") numbers.norms += count;
    else numbers.biases += count;
  }
  return numbers;
}

int64_t count_parameters(const Blueprint& blueprint, bool with_mtp) {
  int64_t total = plain_numbers(blueprint, with_mtp).total();
  for (const LinearMap& map : linear_maps(blueprint, with_mtp)) {
    total += map.units(blueprint.router.experts) * map.outputs * map.inputs;
  }
  return total;
}

int64_t count_active_parameters(const Blueprint& blueprint) {
  int64_t total = plain_numbers(blueprint, false, {}, blueprint.router.top_k).total();
  for (const LinearMap& map : linear_maps(blueprint, false)) {
    total += map.units(blueprint.router.top_k) * map.outputs * map.inputs;
  }
  return total;
}

}  // namespace moetune
