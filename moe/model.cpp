#include "moe/model.h"

#include <algorithm>
#include <map>

#include "moe/block_memory.h"
#include "moe/inventory.h"
#include "parallel/base/error.h"

namespace moetune {
namespace {

/// Makes the parts of a model from a weight source; names are those of the Hugging Face checkpoint.
class Builder {
 public:
  Builder(Model& model, WeightSource& source, const ModelOptions& options)
      : model_(model),
        config_(model.config),
        source_(source),
        options_(options),
        vocabulary_(VocabularyPart::of(config_.vocab, options.axis)) {}

  void build() {
    model_.slabs = options_.slabs;
    if (model_.slabs == nullptr) {
      model_.own_slabs = std::make_unique<FrozenSlabs>(options_.device);
      model_.slabs = model_.own_slabs.get();
    }
    model_.embedding = embedding(of_vocabulary("model.embed_tokens.weight", LayerId::embedding(), "embedding"));
    for (const LayerId layer : config_.blocks(/*with_mtp=*/false)) add_block(layer);
    const LayerId turn = config_.turn();
    auto [norm_D, norm] = plain("model.norm.weight", {config_.width}, turn, "norms");
    Plain head{model_.embedding.weight(), nullptr};
    if (!config_.tied_embeddings) {
      head = of_vocabulary("lm_head.weight", turn, "head");
    } else if (options_.train_weights) {
      throw UserError("adapter: none trains embedding and head apart, but this model ties them (tie_word_embeddings)");
    }
    model_.head = make_head({norm_D, head.held, norm, head.trained});
    if (options_.with_mtp) add_mtp(norm_D, head);
    if (options_.targets != nullptr) options_.targets->require_all_matched();
  }

 private:
  std::string layer_name(LayerId layer, const std::string& rest) const {
    return str("model.layers.", layer.number(), ".", rest);
  }

  /// A tensor that is never quantised: as a parameter when weights train, in compute dtype otherwise.
  struct Plain {
    at::Tensor held;
    Parameter* trained = nullptr;
  };
  Plain plain(const std::string& name, at::IntArrayRef shape, LayerId layer, const std::string& group) {
    return plain(name, source_.read(name, shape), layer, group, {});
  }
  /// The same of a part, which `stored` is.
  Plain plain(const std::string& name, const at::Tensor& stored, LayerId layer, const std::string& group,
              const TensorPart& part) {
    if (options_.train_weights) {
      ParameterInfo info;
      info.name = name;
      info.layer = layer;
      info.group = group;
      if (!part.is_whole()) info.hold_part(part.dim, part.first, part.total);
      Parameter& parameter = model_.parameters.add(info, stored);
      return {parameter.working, &parameter};
    }
    at::Tensor held = stored.to(options_.device, options_.compute);
    model_.plain.push_back({name, held, part});
    return {held, nullptr};
  }
  at::Tensor norm(LayerId layer, const std::string& rest, int64_t width) {
    return plain(layer_name(layer, rest), {width}, layer, "norms").held;
  }

  /// This rank's rows of an embedding or a head [V, D].
  at::Tensor vocabulary_rows(const std::string& name) {
    at::Tensor all_VD = source_.read(name, {config_.vocab, config_.width});
    // A copy: a view would keep all rows in memory.
    return vocabulary_.count == config_.vocab ? all_VD : all_VD.narrow(0, vocabulary_.first, vocabulary_.count).clone();
  }
  Plain of_vocabulary(const std::string& name, LayerId layer, const std::string& group) {
    return of_vocabulary(name, vocabulary_rows(name), layer, group);
  }
  Plain of_vocabulary(const std::string& name, const at::Tensor& rows, LayerId layer, const std::string& group) {
    const bool cut = options_.axis.size() > 1;
    return plain(name, rows, layer, group, cut ? TensorPart{0, vocabulary_.first, config_.vocab} : TensorPart{});
  }
  Embedding embedding(const Plain& weight) const { return {weight.held, weight.trained, vocabulary_, options_.axis}; }
  std::unique_ptr<Head> make_head(HeadWeights weights) const {
    return std::make_unique<Head>(std::move(weights), config_.vocab, config_.norm_eps, options_.head_chunk_rows,
                                  options_.axis);
  }

  /// The maps of one block by their paths; each is taken once.
  using Maps = std::map<std::string, LinearMap>;
  Maps maps_of(LayerId layer) {
    Maps maps;
    for (LinearMap& map : block_maps(config_, layer, options_.targets)) maps.emplace(map.path, std::move(map));
    return maps;
  }

  /// A new slab for frozen weights; null where weights train.
  FrozenSlab* slab(SlabKind kind, LayerId layer, int64_t units) {
    if (options_.train_weights) return nullptr;
    return &model_.slabs->add(
        kind, layer, units,
        kind == SlabKind::kExperts ? SlabUnits{options_.placement.first, options_.placement.total} : SlabUnits{});
  }

  MatrixCut cut_of(const LinearMap& map) const {
    const TensorAxis& axis = map.stack > 0 ? options_.expert_axis : options_.axis;
    return {map.cut, axis.index(), axis.size()};
  }

  std::unique_ptr<FrozenWeight> frozen(const LinearMap& map, int64_t units, FrozenSlab& slab) {
    const FrozenShape shape{held_format(map, options_.base), units, map.outputs, map.inputs, cut_of(map)};
    auto weight = std::make_unique<FrozenWeight>(shape, options_.device, options_.compute);
    slab.hold(*weight, map.name() + ".weight");
    return weight;
  }

  /// Fixes a slab's layout and fills it.
  void load(FrozenSlab* slab) {
    if (slab == nullptr) return;
    slab->close();
    slab->fill([this](const std::string& name, at::IntArrayRef shape) { return source_.read(name, shape); });
  }

  /// `layer`: whose way up completes the gradient. The weight goes to `slab`, which load() fills.
  std::unique_ptr<Linear> linear(const LinearMap& map, LayerId layer, FrozenSlab* slab) {
    ParameterInfo info;
    info.name = map.name();
    info.layer = layer;
    info.group = map.group;
    const MatrixCut cut = cut_of(map);
    if (options_.train_weights) {
      info.name += ".weight";
      if (cut.cuts_outputs()) info.hold_part(0, cut.first_output(map.outputs), map.outputs);
      if (cut.cuts_inputs()) info.hold_part(1, cut.first_input(map.inputs), map.inputs);
      return std::make_unique<Linear>(
          model_.parameters.add(info, cut.part_of(source_.read(info.name, {map.outputs, map.inputs}))));
    }
    auto weight = frozen(map, 1, *slab);
    std::unique_ptr<Adapter> adapter;
    if (map.adapter) {
      adapter = std::make_unique<Adapter>(*map.adapter, info, 0, map.outputs, map.inputs, options_.seed,
                                          model_.parameters, cut);
    }
    return std::make_unique<Linear>(std::move(weight), std::move(adapter));
  }

  std::unique_ptr<SwigluMlp> mlp(const Maps& maps, const std::string& path, FrozenSlab* slab) {
    auto map = [&](const char* leaf) { return linear(maps.at(path + leaf), maps.at(path + leaf).layer, slab); };
    auto gate = map(".gate_proj"), up = map(".up_proj"), down = map(".down_proj");
    return std::make_unique<SwigluMlp>(std::move(gate), std::move(up), std::move(down), options_.axis);
  }

  std::unique_ptr<GroupedLinear> grouped(const LinearMap& map, FrozenSlab* slab) {
    const ExpertPlacement& placement = options_.placement;
    ParameterInfo info;
    info.name = map.name();
    info.layer = map.layer;
    info.group = map.group;
    info.replicas = Replicas::kExpertReplicas;
    info.first_expert = placement.first;
    info.num_experts = placement.total;
    const MatrixCut cut = cut_of(map);
    if (options_.train_weights) {
      info.name += ".weight";
      if (cut.cuts_outputs()) info.hold_part(1, cut.first_output(map.outputs), map.outputs);
      if (cut.cuts_inputs()) info.hold_part(2, cut.first_input(map.inputs), map.inputs);
      at::Tensor stack = at::empty({placement.count, cut.outputs(map.outputs), cut.inputs(map.inputs)},
                                   accumulate_dtype(options_.compute));
      for (int64_t e = 0; e < placement.count; ++e) {
        stack[e].copy_(
            cut.part_of(source_.read(expert_name(info.name, placement.first + e), {map.outputs, map.inputs})));
      }
      return std::make_unique<GroupedLinear>(model_.parameters.add(info, stack));
    }
    auto weight = frozen(map, placement.count, *slab);
    std::unique_ptr<Adapter> adapter;
    if (map.adapter) {
      adapter = std::make_unique<Adapter>(*map.adapter, info, placement.count, map.outputs, map.inputs, options_.seed,
                                          model_.parameters, cut);
    }
    return std::make_unique<GroupedLinear>(std::move(weight), std::move(adapter));
  }

  std::unique_ptr<LatentAttention> attention(LayerId layer, const Maps& maps, FrozenSlab* slab) {
    auto map = [&](const char* leaf) { return linear(maps.at(str("self_attn.", leaf)), layer, slab); };
    AttentionWeights w;
    if (config_.q_lora) {
      w.q_a = map("q_a_proj");
      w.q_a_norm = norm(layer, "self_attn.q_a_layernorm.weight", *config_.q_lora);
      w.q_b = map("q_b_proj");
    } else {
      w.q = map("q_proj");
    }
    w.kv_a = map("kv_a_proj_with_mqa");
    w.kv_a_norm = norm(layer, "self_attn.kv_a_layernorm.weight", config_.kv_lora);
    w.kv_b = map("kv_b_proj");
    w.o = map("o_proj");
    return std::make_unique<LatentAttention>(config_, std::move(w), options_.axis);
  }

  void add_block(LayerId layer) {
    const Maps maps = maps_of(layer);
    BlockParts parts;
    parts.dense_slab = slab(SlabKind::kDense, layer, 1);
    parts.input_norm = norm(layer, "input_layernorm.weight", config_.width);
    parts.post_attention_norm = norm(layer, "post_attention_layernorm.weight", config_.width);
    parts.attention = attention(layer, maps, parts.dense_slab);
    if (!config_.is_moe(layer)) {
      parts.mlp = mlp(maps, "mlp", parts.dense_slab);
    } else {
      if (config_.shared_experts > 0) parts.mlp = mlp(maps, "mlp.shared_experts", parts.dense_slab);
      at::Tensor weight_ED = router_weight(layer);
      at::Tensor bias_E = source_.read(layer_name(layer, "mlp.gate.e_score_correction_bias"), {config_.experts})
                              .to(options_.device, accumulate_dtype(options_.compute), false, /*copy=*/true);
      parts.router = std::make_unique<Router>(config_, weight_ED, bias_E, options_.axis);
      parts.expert_slab = slab(SlabKind::kExperts, layer, options_.placement.count);
      auto gate = grouped(maps.at("mlp.experts.*.gate_proj"), parts.expert_slab);
      auto up = grouped(maps.at("mlp.experts.*.up_proj"), parts.expert_slab);
      auto down = grouped(maps.at("mlp.experts.*.down_proj"), parts.expert_slab);
      const int64_t chunk = experts_at_a_time(config_, options_.compute, options_.expert_chunk_bytes,
                                              options_.placement.count, options_.expert_axis.size());
      parts.experts =
          std::make_unique<RoutedExperts>(std::move(gate), std::move(up), std::move(down), options_.placement, chunk,
                                          *options_.exchange, options_.expert_axis);
    }
    load(parts.dense_slab);
    load(parts.expert_slab);
    model_.blocks.emplace_back(config_, std::move(parts));
    if (options_.loaded) options_.loaded(layer);
  }

  // Frozen, the router keeps the checkpoint's dtype: scores are computed in fp32 from it.
  at::Tensor router_weight(LayerId layer) {
    const std::string name = layer_name(layer, "mlp.gate.weight");
    if (options_.train_weights) return plain(name, {config_.experts, config_.width}, layer, "router").held;
    at::Tensor held = source_.read(name, {config_.experts, config_.width}).to(options_.device);
    model_.plain.push_back({name, held, {}});
    return held;
  }

  void add_mtp(const at::Tensor& trunk_norm, const Plain& trunk_head) {
    const LayerId layer = config_.mtp(), turn = config_.turn();
    const LinearMap projection = mtp_projection(config_);
    const std::string first_name = projection.name() + ".weight";
    if (config_.num_mtp_layers < 1 || !source_.has(first_name)) {
      throw UserError(
          str("mtp.loss_weight is above 0, but the checkpoint has no MTP module (", first_name, "); set it to 0"));
    }
    add_block(layer);
    Mtp::Parts parts;
    auto extra = [&](const char* rest, at::IntArrayRef shape, const char* group) {
      return plain(layer_name(layer, rest), shape, turn, group);
    };
    parts.embedding_norm = extra("enorm.weight", {config_.width}, "norms").held;
    parts.hidden_norm = extra("hnorm.weight", {config_.width}, "norms").held;
    parts.trunk_norm = trunk_norm;
    parts.slab = slab(SlabKind::kDense, turn, 1);
    parts.projection = linear(projection, turn, parts.slab);
    load(parts.slab);
    const Embedding& trunk = model_.embedding;
    parts.embedding = embedding(
        shared_or_own(layer_name(layer, "embed_tokens.weight"), "embedding", {trunk.weight(), trunk.parameter()}));
    const Plain head = shared_or_own(layer_name(layer, "shared_head.head.weight"), "head", trunk_head);
    auto [head_norm_D, head_norm] = extra("shared_head.norm.weight", {config_.width}, "norms");
    parts.head = make_head({head_norm_D, head.held, head_norm, head.trained});
    model_.mtp = std::make_unique<Mtp>(std::move(parts), config_.norm_eps);
  }

  // The checkpoint carries copies of embedding and head in the module; a copy that equals the trunk's is not held
  // twice, and where weights train it goes on being one tensor, as the paper shares them. Copies may differ in other
  // ranks' rows alone: ranks agree.
  Plain shared_or_own(const std::string& name, const std::string& group, const Plain& trunk) {
    if (!source_.has(name)) return trunk;
    at::Tensor own_VD = vocabulary_rows(name), trunk_VD = trunk.held.detach();
    at::Tensor differs = at::full({1}, !at::equal(own_VD.to(trunk_VD.device(), trunk_VD.scalar_type()), trunk_VD),
                                  trunk_VD.options().dtype(at::kBool));
    options_.axis.max(differs);
    return differs.item<bool>() ? of_vocabulary(name, own_VD, config_.turn(), group) : trunk;
  }

  Model& model_;
  const ModelConfig& config_;
  WeightSource& source_;
  const ModelOptions& options_;
  VocabularyPart vocabulary_;
};

}  // namespace

int64_t Model::scratch_elements() const {
  int64_t most = 0;
  for (const Block& block : blocks) most = std::max(most, block.scratch_elements());
  if (mtp && mtp->parts().slab != nullptr) most = std::max(most, mtp->parts().projection->frozen()->scratch_elements());
  return most;
}

std::unique_ptr<Model> build_model(const ModelConfig& config, WeightSource& source, const ModelOptions& options) {
  auto model = std::make_unique<Model>(config, options);
  Builder(*model, source, options).build();
  return model;
}

}  // namespace moetune
