#include "moe/tensor_catalog.h"

#include "parallel/base/error.h"

namespace moetune {
namespace {

class Catalog {
 public:
  explicit Catalog(const ModelConfig& config) : c_(config) {}

  std::vector<CatalogTensor> make(bool with_mtp) {
    add("model.embed_tokens.weight", {c_.vocab, c_.width}, Held::kCompute);
    for (const LayerId layer : c_.blocks(/*with_mtp=*/false)) add_block(layer);
    add("model.norm.weight", {c_.width}, Held::kCompute);
    if (!c_.tied_embeddings) add("lm_head.weight", {c_.vocab, c_.width}, Held::kCompute);
    if (with_mtp) add_mtp();
    return std::move(tensors_);
  }

 private:
  void add(const std::string& name, std::vector<int64_t> shape, Held held) {
    tensors_.push_back({name, std::move(shape), held});
  }

  void add_mlp(const std::string& path, int64_t width) {
    add(path + ".gate_proj.weight", {width, c_.width}, Held::kLinear);
    add(path + ".up_proj.weight", {width, c_.width}, Held::kLinear);
    add(path + ".down_proj.weight", {c_.width, width}, Held::kLinear);
  }

  void add_attention(const std::string& path) {
    const int64_t queries = c_.heads * c_.qk_dim();
    if (c_.q_lora) {
      add(path + ".q_a_proj.weight", {*c_.q_lora, c_.width}, Held::kLinear);
      add(path + ".q_a_layernorm.weight", {*c_.q_lora}, Held::kCompute);
      add(path + ".q_b_proj.weight", {queries, *c_.q_lora}, Held::kLinear);
    } else {
      add(path + ".q_proj.weight", {queries, c_.width}, Held::kLinear);
    }
    add(path + ".kv_a_proj_with_mqa.weight", {c_.kv_lora + c_.rope_dim, c_.width}, Held::kLinear);
    add(path + ".kv_a_layernorm.weight", {c_.kv_lora}, Held::kCompute);
    add(path + ".kv_b_proj.weight", {c_.heads * (c_.nope_dim + c_.value_dim), c_.kv_lora}, Held::kLinear);
    add(path + ".o_proj.weight", {c_.width, c_.heads * c_.value_dim}, Held::kLinear);
  }

  void add_block(LayerId layer) {
    const std::string path = str("model.layers.", layer.number());
    add(path + ".input_layernorm.weight", {c_.width}, Held::kCompute);
    add(path + ".post_attention_layernorm.weight", {c_.width}, Held::kCompute);
    add_attention(path + ".self_attn");
    if (!c_.is_moe(layer)) {
      add_mlp(path + ".mlp", c_.dense_width);
      return;
    }
    if (c_.shared_experts > 0) add_mlp(path + ".mlp.shared_experts", c_.shared_experts * c_.expert_width);
    add(path + ".mlp.gate.weight", {c_.experts, c_.width}, Held::kStored);
    add(path + ".mlp.gate.e_score_correction_bias", {c_.experts}, Held::kBias);
    for (int64_t e = 0; e < c_.experts; ++e) add_mlp(str(path, ".mlp.experts.", e), c_.expert_width);
  }

  void add_mtp() {
    const std::string path = str("model.layers.", c_.num_layers);
    add_block(c_.mtp());
    add(path + ".enorm.weight", {c_.width}, Held::kCompute);
    add(path + ".hnorm.weight", {c_.width}, Held::kCompute);
    add(path + ".eh_proj.weight", {c_.width, 2 * c_.width}, Held::kJoint);
    add(path + ".embed_tokens.weight", {c_.vocab, c_.width}, Held::kCompute);
    tensors_.back().may_be_shared = true;
    add(path + ".shared_head.norm.weight", {c_.width}, Held::kCompute);
    add(path + ".shared_head.head.weight", {c_.vocab, c_.width}, Held::kCompute);
    tensors_.back().may_be_shared = true;
  }

  const ModelConfig& c_;
  std::vector<CatalogTensor> tensors_;
};

}  // namespace

std::vector<CatalogTensor> tensor_catalog(const ModelConfig& config, bool with_mtp) {
  return Catalog(config).make(with_mtp);
}

}  // namespace moetune
