#include "moe/blueprint.h"

#include <algorithm>

#include "parallel/base/error.h"

namespace moetune {
namespace {

using Cut = MatrixCut::Dim;

/// Lists the tensors of one model.
class TensorList {
 public:
  explicit TensorList(const Blueprint& model) : model_(model) {}

  void add_trunk() {
    const int64_t V = model_.vocab, D = model_.width;
    add(TensorRole::kEmbedding, LayerId::embedding(), "model.embed_tokens.weight", {V, D}, "embedding");
    for (const LayerId layer : model_.blocks(/*with_mtp=*/false)) add_block(layer);
    add(TensorRole::kFinalNorm, model_.turn(), "model.norm.weight", {D}, "norms");
    if (!model_.tied_embeddings) add(TensorRole::kHead, model_.turn(), "lm_head.weight", {V, D}, "head");
  }

  void add_mtp() {
    const int64_t V = model_.vocab, D = model_.width;
    const LayerId layer = model_.mtp();
    add_block(layer);
    layer_ = layer;
    path_ = "model.layers." + std::to_string(layer.number());
    norm(TensorRole::kMtpEmbeddingNorm, "enorm", D);
    norm(TensorRole::kMtpHiddenNorm, "hnorm", D);
    map(TensorRole::kMtpProjection, "eh_proj", "mtp", D, 2 * D, Cut::kNone).held = Held::kJoint;
    add(TensorRole::kMtpEmbedding, layer, path_ + ".embed_tokens.weight", {V, D}, "embedding").may_be_shared = true;
    norm(TensorRole::kMtpHeadNorm, "shared_head.norm", D);
    add(TensorRole::kMtpHead, layer, path_ + ".shared_head.head.weight", {V, D}, "head").may_be_shared = true;
  }

  void add_block(LayerId layer) {
    const LayerSpec& spec = model_.layer(layer);
    layer_ = layer;
    path_ = "model.layers." + std::to_string(layer.number());
    norm(TensorRole::kInputNorm, "input_layernorm", model_.width);
    norm(TensorRole::kPostAttentionNorm, "post_attention_layernorm", model_.width);
    path_ += ".self_attn";
    spec.attention.kind == AttentionSpec::Kind::kLatent ? add_latent(spec.attention) : add_grouped(spec.attention);
    path_ = "model.layers." + std::to_string(layer.number()) + ".";
    if (spec.has_experts()) {
      path_ += model_.naming.sparse;
      add_experts();
    } else {
      path_ += model_.naming.dense;
      add_mlp("dense_mlp", spec.dense_width);
    }
  }

  std::vector<TensorSpec> take() { return std::move(tensors_); }

 private:
  TensorSpec& add(TensorRole role, LayerId layer, const std::string& name, std::vector<int64_t> shape,
                  const std::string& group) {
    TensorSpec tensor;
    tensor.role = role;
    tensor.layer = layer;
    tensor.name = name;
    tensor.shape = std::move(shape);
    tensor.group = group;
    return tensors_.emplace_back(std::move(tensor));
  }

  void norm(TensorRole role, const std::string& rest, int64_t width) {
    add(role, layer_, path_ + "." + rest + ".weight", {width}, "norms");
  }

  TensorSpec& map(TensorRole role, const std::string& leaf, const std::string& group, int64_t outputs, int64_t inputs,
                  Cut cut, int64_t stack = 0) {
    TensorSpec& tensor = add(role, layer_, path_ + "." + leaf + ".weight", {outputs, inputs}, group);
    tensor.held = Held::kLinear;
    tensor.cut = cut;
    tensor.stack = stack;
    return tensor;
  }
  /// The bias of the map that was added last.
  void bias() {
    const TensorSpec map = tensors_.back();
    TensorSpec& tensor = add(map.role, layer_, map.module() + ".bias", {map.shape[0]}, map.group);
    tensor.bias = true;
    tensor.stack = map.stack;
    // Of a map that is cut by its inputs, each rank would add it once.
    tensor.cut = map.cut == Cut::kOutputs ? Cut::kOutputs : Cut::kNone;
    tensor.cut_features = map.cut_features;
    tensor.cut_heads = map.cut_heads;
  }

  void add_latent(const AttentionSpec& a) {
    const int64_t D = model_.width, H = a.heads;
    if (a.q_lora) {
      map(TensorRole::kQA, "q_a_proj", "attention", *a.q_lora, D, Cut::kNone);
      if (a.qkv_bias) bias();
      norm(TensorRole::kQANorm, "q_a_layernorm", *a.q_lora);
      map(TensorRole::kQB, "q_b_proj", "attention", H * a.key_dim(), *a.q_lora, Cut::kOutputs);
    } else {
      map(TensorRole::kQ, "q_proj", "attention", H * a.key_dim(), D, Cut::kOutputs);
    }
    map(TensorRole::kKvA, "kv_a_proj_with_mqa", "attention", a.kv_lora + a.rotary_dim, D, Cut::kNone);
    if (a.qkv_bias) bias();
    norm(TensorRole::kKvANorm, "kv_a_layernorm", a.kv_lora);
    map(TensorRole::kKvB, "kv_b_proj", "attention", H * (a.nope_dim + a.value_dim), a.kv_lora, Cut::kOutputs);
    map(TensorRole::kO, "o_proj", "attention", D, H * a.value_dim, Cut::kInputs);
    if (a.o_bias) bias();
  }

  void add_grouped(const AttentionSpec& a) {
    const int64_t D = model_.width, H = a.heads, G = a.kv_heads, A = a.key_dim();
    const auto projection = [&](TensorRole role, const char* leaf, int64_t outputs, int64_t cut_heads) {
      map(role, leaf, "attention", outputs, D, Cut::kOutputs).cut_heads = cut_heads;
      if (a.qkv_bias) bias();
    };
    projection(TensorRole::kQ, "q_proj", H * A, 0);
    projection(TensorRole::kK, "k_proj", G * A, G);
    projection(TensorRole::kV, "v_proj", G * a.value_dim, G);
    map(TensorRole::kO, "o_proj", "attention", D, H * a.value_dim, Cut::kInputs);
    if (a.o_bias) bias();
    if (a.head_norm == AttentionSpec::HeadNorm::kPerHead || a.head_norm == AttentionSpec::HeadNorm::kAllHeads) {
      const bool all = a.head_norm == AttentionSpec::HeadNorm::kAllHeads;
      norm(TensorRole::kQNorm, "q_norm", all ? H * A : A);
      if (all) tensors_.back().cut = Cut::kOutputs;
      norm(TensorRole::kKNorm, "k_norm", all ? G * A : A);
      if (all) {
        tensors_.back().cut = Cut::kOutputs;
        tensors_.back().cut_heads = G;
      }
    }
    if (a.sinks) {
      add(TensorRole::kSinks, layer_, path_ + ".sinks", {H}, "attention").cut = Cut::kOutputs;
    }
  }

  void add_mlp(const std::string& group, int64_t width) {
    const int64_t D = model_.width;
    map(TensorRole::kGate, "gate_proj", group, width, D, Cut::kOutputs).cut_features = width;
    map(TensorRole::kUp, "up_proj", group, width, D, Cut::kOutputs).cut_features = width;
    map(TensorRole::kDown, "down_proj", group, D, width, Cut::kInputs).cut_features = width;
  }

  void add_experts() {
    const Naming& naming = model_.naming;
    const RouterSpec& router = model_.router;
    const ExpertSpec& experts = model_.experts;
    const int64_t D = model_.width, E = router.experts, F = experts.width;
    const std::string sparse = path_;
    if (experts.shared_width > 0) {
      path_ = sparse + "." + naming.shared;
      add_mlp("shared_expert", experts.shared_width);
      path_ = sparse;
    }
    if (experts.shared_gate) {
      add(TensorRole::kSharedGate, layer_, sparse + ".shared_expert_gate.weight", {1, D}, "shared_expert");
    }
    add(TensorRole::kRouter, layer_, sparse + "." + naming.router + ".weight", {E, D}, "router").held = Held::kStored;
    if (router.bias) {
      TensorSpec& bias = add(TensorRole::kRouter, layer_, str(sparse, ".", naming.router, ".bias"), {E}, "router");
      bias.bias = true;
      bias.held = Held::kStored;
    }
    if (router.correction_bias) {
      add(TensorRole::kCorrectionBias, layer_, sparse + "." + naming.correction_bias, {E}, "router").held = Held::kBias;
    }
    path_ = sparse + ".experts.*";
    const auto stack = [&](TensorRole role, const std::string& leaf, int64_t outputs, int64_t inputs, Cut cut) {
      map(role, leaf, "experts", outputs, inputs, cut, E).cut_features = F;
      if (experts.biases) bias();
    };
    const auto joint = [&](const char* module) {
      for (TensorSpec& tensor : tensors_) {
        if (tensor.layer == layer_ && tensor.stack > 0 && !tensor.bias && tensor.joint_module.empty()) {
          tensor.joint_module = sparse + module;
        }
      }
    };
    if (experts.joint_gate_up()) {
      // PEFT wraps the first parameter of the module, and that wrapper for the second.
      stack(TensorRole::kGateUp, "gate_up_proj", 2 * F, D, Cut::kOutputs);
      joint(".experts.base_layer");
      stack(TensorRole::kDown, naming.down, D, F, Cut::kInputs);
      joint(".experts");
      return;
    }
    stack(TensorRole::kGate, naming.gate, F, D, Cut::kOutputs);
    stack(TensorRole::kUp, naming.up, F, D, Cut::kOutputs);
    stack(TensorRole::kDown, naming.down, D, F, Cut::kInputs);
  }

  const Blueprint& model_;
  LayerId layer_;
  std::string path_;  // of what is being added to
  std::vector<TensorSpec> tensors_;
};

}  // namespace

std::string rotary_text(const RotarySpec& rotary) {
  switch (rotary.scaling) {
    case RotarySpec::Scaling::kDefault: return str("default, theta ", rotary.theta);
    case RotarySpec::Scaling::kLlama3:
      return str("llama3 ", rotary.factor, " x ", rotary.original_max_positions, " positions, theta ", rotary.theta,
                 ", frequencies ", rotary.low_freq_factor, " to ", rotary.high_freq_factor);
    case RotarySpec::Scaling::kYarn: break;
  }
  std::string text = str("yarn ", rotary.factor, " x ", rotary.original_max_positions, " positions, theta ",
                         rotary.theta, ", beta ", rotary.beta_fast, " to ", rotary.beta_slow);
  if (rotary.mscale) text += str(", mscale ", *rotary.mscale);
  if (rotary.mscale_all_dim) text += str(", mscale_all_dim ", *rotary.mscale_all_dim);
  if (rotary.attention_factor) text += str(", attention factor ", *rotary.attention_factor);
  return text + (rotary.truncate ? "" : ", not truncated");
}

std::string TensorSpec::module() const { return name.substr(0, name.rfind('.')); }

std::string TensorSpec::leaf() const {
  const std::string path = module();
  return (stack > 0 ? "experts." : "") + path.substr(path.rfind('.') + 1);
}

int64_t TensorSpec::numel() const {
  int64_t numbers = 1;
  for (const int64_t size : shape) numbers *= size;
  return numbers;
}

std::vector<LayerId> Blueprint::blocks(bool with_mtp) const {
  std::vector<LayerId> blocks;
  for (int64_t index = 0; index < num_layers(); ++index) blocks.push_back(LayerId::block(index));
  if (with_mtp) blocks.push_back(mtp());
  return blocks;
}

int64_t Blueprint::num_dense_layers() const {
  return std::count_if(layers.begin(), layers.end(), [](const LayerSpec& layer) { return !layer.has_experts(); });
}

LayerId Blueprint::completing_layer(const TensorSpec& tensor) const {
  switch (tensor.role) {
    case TensorRole::kMtpEmbeddingNorm:
    case TensorRole::kMtpHiddenNorm:
    case TensorRole::kMtpProjection:
    case TensorRole::kMtpEmbedding:
    case TensorRole::kMtpHeadNorm:
    case TensorRole::kMtpHead: return turn();
    default: return tensor.layer;
  }
}

std::vector<TensorSpec> Blueprint::tensors(bool with_mtp) const {
  TensorList list(*this);
  list.add_trunk();
  if (with_mtp) list.add_mtp();
  return list.take();
}

std::vector<TensorSpec> Blueprint::block_tensors(LayerId block) const {
  TensorList list(*this);
  list.add_block(block);
  return list.take();
}

std::string Blueprint::correction_bias_name(int64_t block) const {
  for (const TensorSpec& tensor : block_tensors(block == num_layers() ? mtp() : LayerId::block(block))) {
    if (tensor.role == TensorRole::kCorrectionBias) return tensor.name;
  }
  return "";
}

}  // namespace moetune
