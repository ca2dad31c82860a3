#include "moe/inventory.h"

#include <set>

#include "parallel/base/error.h"

namespace moetune {
namespace {

/// Collects the maps of one block.
class BlockMaps {
 public:
  BlockMaps(LayerId layer, AdapterTargets* targets) : layer_(layer), targets_(targets) {}

  void add(const std::string& path, const std::string& group, int64_t outputs, int64_t inputs, MatrixCut::Dim cut,
           int64_t stack = 0) {
    LinearMap map{layer_, path, group, outputs, inputs, stack, std::nullopt, cut};
    if (targets_ != nullptr) map.adapter = targets_->match(map.leaf(), group);
    maps_.push_back(std::move(map));
  }
  void add_mlp(const std::string& path, const std::string& group, int64_t model_width, int64_t width,
               int64_t stack = 0) {
    add(path + ".gate_proj", group, width, model_width, MatrixCut::Dim::kOutputs, stack);
    add(path + ".up_proj", group, width, model_width, MatrixCut::Dim::kOutputs, stack);
    add(path + ".down_proj", group, model_width, width, MatrixCut::Dim::kInputs, stack);
  }
  std::vector<LinearMap> take() { return std::move(maps_); }

 private:
  LayerId layer_;
  AdapterTargets* targets_;
  std::vector<LinearMap> maps_;
};

/// What borders of blocks forbid of cutting those maps, dense or stacked, into `parts`; layers are alike.
void add_block_mistakes(const ModelConfig& c, BaseFormat base, int64_t parts, bool stacked,
                        std::vector<std::string>& mistakes) {
  std::set<std::string> seen;
  for (const LinearMap& map : linear_maps(c, false)) {
    if (map.cut == MatrixCut::Dim::kNone || (map.stack > 0) != stacked || !seen.insert(map.path).second) continue;
    try {
      FrozenShape{base, 1, map.outputs, map.inputs, {map.cut, 0, parts}}.check();
    } catch (const UserError& error) {
      mistakes.push_back(str(map.path, ": ", error.what()));
    }
  }
}

}  // namespace

int64_t TensorParts::of(const LinearMap& map) const { return map.stack > 0 ? experts : dense; }

std::string LinearMap::name() const { return str("model.layers.", layer.number(), ".", path); }

std::string LinearMap::leaf() const { return (stack > 0 ? "experts." : "") + path.substr(path.rfind('.') + 1); }

LinearMap LinearMap::part(const TensorParts& parts) const {
  const MatrixCut held{cut, 0, parts.of(*this)};
  LinearMap map = *this;
  map.outputs = held.outputs(outputs);
  map.inputs = held.inputs(inputs);
  return map;
}

std::vector<LinearMap> block_maps(const ModelConfig& c, LayerId layer, AdapterTargets* targets) {
  BlockMaps maps(layer, targets);
  if (c.q_lora) {
    maps.add("self_attn.q_a_proj", "attention", *c.q_lora, c.width, MatrixCut::Dim::kNone);
    maps.add("self_attn.q_b_proj", "attention", c.heads * c.qk_dim(), *c.q_lora, MatrixCut::Dim::kOutputs);
  } else {
    maps.add("self_attn.q_proj", "attention", c.heads * c.qk_dim(), c.width, MatrixCut::Dim::kOutputs);
  }
  maps.add("self_attn.kv_a_proj_with_mqa", "attention", c.kv_lora + c.rope_dim, c.width, MatrixCut::Dim::kNone);
  maps.add("self_attn.kv_b_proj", "attention", c.heads * (c.nope_dim + c.value_dim), c.kv_lora,
           MatrixCut::Dim::kOutputs);
  maps.add("self_attn.o_proj", "attention", c.width, c.heads * c.value_dim, MatrixCut::Dim::kInputs);
  if (!c.is_moe(layer)) {
    maps.add_mlp("mlp", "dense_mlp", c.width, c.dense_width);
    return maps.take();
  }
  if (c.shared_experts > 0) {
    maps.add_mlp("mlp.shared_experts", "shared_expert", c.width, c.shared_experts * c.expert_width);
  }
  maps.add_mlp("mlp.experts.*", "experts", c.width, c.expert_width, c.experts);
  return maps.take();
}

std::vector<std::string> cut_mistakes(const ModelConfig& c, BaseFormat base, int64_t parts) {
  std::vector<std::string> mistakes;
  if (parts <= 1) return mistakes;
  auto divides = [&](int64_t number, const char* what) {
    if (number % parts != 0) mistakes.push_back(str(parts, " ranks do not divide the model's ", number, " ", what));
    return number % parts == 0;
  };
  bool even = divides(c.heads, "attention heads");
  if (c.num_dense_layers > 0) even = divides(c.dense_width, "features of a dense MLP (intermediate_size)") && even;
  if (c.shared_experts > 0) even = divides(c.shared_experts * c.expert_width, "features of the shared expert") && even;
  if ((parts - 1) * ((c.vocab + parts - 1) / parts) >= c.vocab) {
    mistakes.push_back(str("a vocabulary of ", c.vocab, " leaves some of ", parts, " ranks without a token"));
  }
  if (even) add_block_mistakes(c, base, parts, /*stacked=*/false, mistakes);
  return mistakes;
}

std::vector<std::string> expert_cut_mistakes(const ModelConfig& c, BaseFormat base, int64_t parts) {
  if (parts <= 1) return {};
  if (c.expert_width % parts != 0) {
    return {str(parts, " ranks do not divide the model's ", c.expert_width,
                " features of an expert (moe_intermediate_size)")};
  }
  std::vector<std::string> mistakes;
  add_block_mistakes(c, base, parts, /*stacked=*/true, mistakes);
  return mistakes;
}

LinearMap mtp_projection(const ModelConfig& c) {
  return {c.mtp(), "eh_proj", "mtp", c.width, 2 * c.width, 0, std::nullopt};
}

std::vector<LinearMap> linear_maps(const ModelConfig& config, bool with_mtp, AdapterTargets* targets) {
  std::vector<LinearMap> all;
  for (const LayerId layer : config.blocks(with_mtp)) {
    for (LinearMap& map : block_maps(config, layer, targets)) all.push_back(std::move(map));
  }
  if (with_mtp) all.push_back(mtp_projection(config));
  return all;
}

BaseFormat held_format(const LinearMap& map, BaseFormat base) {
  if (map.group != "mtp") return base;
  return base == BaseFormat::kFp32 ? BaseFormat::kFp32 : BaseFormat::kBf16;
}

PlainNumbers plain_numbers(const ModelConfig& c, bool with_mtp, int64_t parts) {
  const int64_t blocks = c.num_layers + (with_mtp ? 1 : 0);
  const int64_t moe_blocks = blocks - c.num_dense_layers;
  PlainNumbers numbers;
  numbers.embedding = (c.vocab + parts - 1) / parts * c.width;
  numbers.head = c.tied_embeddings ? 0 : numbers.embedding;
  // Of a block: before attention, before the MLP, and those of the latents; then the final one; enorm, hnorm and
  // shared_head.norm.
  numbers.norms = blocks * (2 * c.width + c.q_lora.value_or(0) + c.kv_lora) + c.width + (with_mtp ? 3 * c.width : 0);
  numbers.router = moe_blocks * c.experts * c.width;
  numbers.router_bias = moe_blocks * c.experts;
  return numbers;
}

int64_t count_parameters(const ModelConfig& config, bool with_mtp) {
  int64_t total = plain_numbers(config, with_mtp).total();
  for (const LinearMap& map : linear_maps(config, with_mtp)) {
    total += map.units(config.experts) * map.outputs * map.inputs;
  }
  return total;
}

int64_t count_active_parameters(const ModelConfig& config) {
  int64_t total = plain_numbers(config, false).total();
  for (const LinearMap& map : linear_maps(config, false)) total += map.units(config.top_k) * map.outputs * map.inputs;
  return total;
}

}  // namespace moetune
