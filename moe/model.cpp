#include "moe/model.h"

#include <algorithm>

#include "moe/attention/grouped_query_attention.h"
#include "moe/attention/latent_attention.h"
#include "moe/inventory.h"
#include "parallel/base/error.h"

namespace moetune {
namespace {

/// The tensors of one block or of the MTP module by what they are; each is taken once.
class TensorsByRole {
 public:
  explicit TensorsByRole(std::vector<TensorSpec> tensors) : tensors_(std::move(tensors)) {}

  /// Null where the model has none.
  const TensorSpec* find(TensorRole role, bool stacked = false, bool bias = false) const {
    for (const TensorSpec& tensor : tensors_) {
      if (tensor.role == role && (tensor.stack > 0) == stacked && tensor.bias == bias) return &tensor;
    }
    return nullptr;
  }
  /// Those that are linear maps, or with `stacked` stacks of them.
  std::vector<TensorSpec> maps(bool stacked) const {
    std::vector<TensorSpec> found;
    for (const TensorSpec& tensor : tensors_) {
      if (tensor.held == Held::kLinear && (tensor.stack > 0) == stacked) found.push_back(tensor);
    }
    return found;
  }
  const TensorSpec& at(TensorRole role, bool stacked = false) const {
    const TensorSpec* tensor = find(role, stacked);
    MT_CHECK(tensor != nullptr, "a blueprint lacks the tensor of role ", static_cast<int>(role), " in ",
             tensors_.empty() ? "a model without tensors" : to_string(tensors_.front().layer));
    return *tensor;
  }

 private:
  std::vector<TensorSpec> tensors_;
};

/// Makes the parts of a model from a weight source, as the blueprint lists its tensors.
class Builder {
 public:
  Builder(Model& model, WeightSource& source, const ModelOptions& options)
      : model_(model),
        blueprint_(model.blueprint),
        source_(source),
        options_(options),
        vocabulary_(VocabularyPart::of(blueprint_.vocab, options.axis)) {}

  void build() {
    model_.slabs = options_.slabs;
    if (model_.slabs == nullptr) {
      model_.own_slabs = std::make_unique<FrozenSlabs>(options_.device);
      model_.slabs = model_.own_slabs.get();
    }
    const TensorsByRole tensors(blueprint_.tensors(options_.with_mtp));
    const Stage& stage = model_.stage;
    if (stage.has_embedding(blueprint_, options_.with_mtp)) {
      model_.embedding = embedding(of_vocabulary(tensors.at(TensorRole::kEmbedding)));
    }
    for (const LayerId layer : stage.blocks(blueprint_, /*with_mtp=*/false)) add_block(layer);
    if (stage.is_last()) add_end(tensors);
    for (const LayerId layer : {LayerId::embedding(), blueprint_.turn()}) options_.loaded(layer, model_.parameters);
    if (options_.targets == nullptr) return;
    // A target may match in other stages alone.
    for (const LayerId layer : blueprint_.blocks(options_.with_mtp)) {
      if (!stage.holds(layer)) block_maps(blueprint_, layer, options_.targets, options_.trained);
    }
    options_.targets->require_all_matched();
  }

 private:
  /// Final norm, head and MTP module.
  void add_end(const TensorsByRole& tensors) {
    auto [norm_D, norm] = plain(tensors.at(TensorRole::kFinalNorm));
    Plain head{model_.embedding.weight(), model_.embedding.parameter()};  // where they are tied
    if (!blueprint_.tied_embeddings) head = of_vocabulary(tensors.at(TensorRole::kHead));
    model_.head = make_head({norm_D, head.held, norm, head.trained});
    if (options_.with_mtp) add_mtp(tensors, norm_D, head);
  }

  /// A tensor that is never quantised: a parameter where it trains, in compute dtype otherwise.
  struct Plain {
    at::Tensor held;
    Parameter* trained = nullptr;
  };
  Plain plain(const TensorSpec& tensor) { return plain(tensor, source_.read(tensor.name, tensor.shape), {}); }
  /// The same of a part, which `stored` is.
  Plain plain(const TensorSpec& tensor, const at::Tensor& stored, const TensorPart& part) {
    if (options_.trained.trains(tensor)) {
      ParameterInfo info = parameter_of(tensor, tensor.name);
      info.on_first_and_last_stage = shared_by_stages(tensor);
      if (!part.is_whole()) info.hold_part(part.dim, part.first, part.total);
      Parameter& parameter = model_.parameters.add(info, stored);
      return {parameter.working, &parameter};
    }
    at::Tensor held = stored.to(options_.device, options_.compute);
    model_.plain.push_back(
        {tensor.name, held, part, /*of_expert=*/false, shared_by_stages(tensor) && !model_.stage.is_first()});
    return {held, nullptr};
  }
  /// Whether the first and the last stage, two of them, hold it.
  bool shared_by_stages(const TensorSpec& tensor) const {
    return tensor.role == TensorRole::kEmbedding && !model_.stage.is_whole() &&
           end_uses_embedding(blueprint_, options_.with_mtp);
  }
  at::Tensor norm(const TensorSpec& tensor) { return plain(tensor).held; }

  /// This rank's rows of an embedding or a head [V, D].
  at::Tensor vocabulary_rows(const TensorSpec& tensor) {
    at::Tensor all_VD = source_.read(tensor.name, tensor.shape);
    // A copy: a view would keep all rows in memory.
    return vocabulary_.count == blueprint_.vocab ? all_VD
                                                 : all_VD.narrow(0, vocabulary_.first, vocabulary_.count).clone();
  }
  Plain of_vocabulary(const TensorSpec& tensor) { return of_vocabulary(tensor, vocabulary_rows(tensor)); }
  Plain of_vocabulary(const TensorSpec& tensor, const at::Tensor& rows) {
    const bool cut = options_.axis.size() > 1;
    return plain(tensor, rows, cut ? TensorPart{0, vocabulary_.first, blueprint_.vocab} : TensorPart{});
  }
  Embedding embedding(const Plain& weight) const { return {weight.held, weight.trained, vocabulary_, options_.axis}; }
  std::unique_ptr<Head> make_head(HeadWeights weights) const {
    return std::make_unique<Head>(std::move(weights), blueprint_.vocab, blueprint_.norm_eps, options_.head_chunk_rows,
                                  options_.axis);
  }

  /// A new slab for those of these maps that are frozen; null where all of them train.
  FrozenSlab* slab(SlabKind kind, LayerId layer, const std::vector<TensorSpec>& maps) {
    const auto freezes = [&](const TensorSpec& map) { return options_.trained.freezes(map); };
    if (std::none_of(maps.begin(), maps.end(), freezes)) return nullptr;
    if (kind == SlabKind::kDense) return &model_.slabs->add(kind, layer, /*units=*/1, SlabUnits{});
    const ExpertPlacement& placement = options_.placement;
    return &model_.slabs->add(kind, layer, placement.count, SlabUnits{placement.first, placement.total});
  }

  TensorParts parts() const { return {options_.axis.size(), options_.expert_axis.size(), options_.base}; }
  MatrixCut cut_of(const TensorSpec& tensor) const {
    const TensorAxis& axis = tensor.stack > 0 ? options_.expert_axis : options_.axis;
    return parts().cut_of(tensor, axis.index());
  }

  std::unique_ptr<FrozenWeight> frozen(const LinearMap& map, int64_t units, FrozenSlab& slab) {
    const FrozenShape shape{held_format(map, options_.base), units, map.outputs, map.inputs, cut_of(map)};
    auto weight = std::make_unique<FrozenWeight>(shape, options_.device, options_.compute);
    slab.hold(*weight, map.name);
    return weight;
  }

  /// Fixes a slab's layout and fills it.
  void load(FrozenSlab* slab) {
    if (slab == nullptr) return;
    slab->close();
    slab->fill([this](const std::string& name, at::IntArrayRef shape) { return source_.read(name, shape); });
  }

  /// What a tensor, or an adapter of it, is as a parameter called `name`.
  ParameterInfo parameter_of(const TensorSpec& tensor, const std::string& name) const {
    ParameterInfo info;
    info.name = name;
    info.layer = blueprint_.completing_layer(tensor);
    info.group = tensor.group;
    info.decays = tensor.shape.size() > 1;
    return info;
  }
  /// Of a map's weight where it trains, otherwise of its adapter, named after the module.
  static std::string name_of(const LinearMap& map) { return map.trained ? map.name : map.module(); }

  LinearMap map_of(const TensorSpec& tensor) { return linear_map(tensor, options_.targets, options_.trained); }

  /// The same of what trains and of plain tensors.
  MatrixCut cut_without_copies(const TensorSpec& tensor) const {
    const TensorAxis& axis = tensor.stack > 0 ? options_.expert_axis : options_.axis;
    return parts().cut_without_copies(tensor, axis.index());
  }

  /// This rank's part of a tensor of one dimension, cut as the outputs of a map are.
  at::Tensor part_of_vector(const TensorSpec& tensor) {
    const MatrixCut cut = cut_without_copies(tensor);
    if (!cut.cuts_outputs()) return norm(tensor);
    const int64_t all = tensor.shape.at(0), first = cut.first_output(all);
    const at::Tensor held = source_.read(tensor.name, tensor.shape).narrow(0, first, cut.outputs(all)).clone();
    return plain(tensor, held, {0, first, all}).held;
  }

  /// The map of a role, with its bias where it has one.
  std::unique_ptr<Linear> linear(const TensorsByRole& tensors, TensorRole role, FrozenSlab* slab) {
    const TensorSpec& map = tensors.at(role);
    const TensorSpec* bias_tensor = tensors.find(role, /*stacked=*/false, /*bias=*/true);
    at::Tensor bias_O;
    if (bias_tensor != nullptr) {
      // All ranks hold it alike; results of a map that is cut by its inputs are summed, and it counts once.
      bias_O = part_of_vector(*bias_tensor);
      if (cut_of(map).cuts_inputs() && options_.axis.index() > 0) bias_O = at::Tensor();
    }
    return linear(map, slab, bias_O);
  }
  /// A frozen weight goes to `slab`, which load() fills.
  std::unique_ptr<Linear> linear(const TensorSpec& tensor, FrozenSlab* slab, at::Tensor bias_O = {}) {
    const LinearMap map = map_of(tensor);
    ParameterInfo info = parameter_of(map, name_of(map));
    const MatrixCut cut = cut_without_copies(map), held = cut_of(map);
    OutputRange used;
    if (held.copies > 1) used = {held.first_output(map.outputs), held.outputs(map.outputs)};
    if (map.trained) {
      if (cut.cuts_outputs()) info.hold_part(0, cut.first_output(map.outputs), map.outputs);
      if (cut.cuts_inputs()) info.hold_part(1, cut.first_input(map.inputs), map.inputs);
      return std::make_unique<Linear>(model_.parameters.add(info, cut.part_of(source_.read(map.name, map.shape))),
                                      std::move(bias_O), used);
    }
    auto weight = frozen(map, 1, *slab);
    std::unique_ptr<Adapter> adapter;
    if (map.adapter) {
      adapter = std::make_unique<Adapter>(*map.adapter, info, 0, map.outputs, map.inputs, options_.seed,
                                          model_.parameters, cut);
    }
    return std::make_unique<Linear>(std::move(weight), std::move(adapter), std::move(bias_O), used);
  }

  /// The dense MLP, or the shared expert.
  std::unique_ptr<SwigluMlp> mlp(const TensorsByRole& tensors, FrozenSlab* slab) {
    auto map = [&](TensorRole role) { return linear(tensors.at(role), slab); };
    auto gate = map(TensorRole::kGate), up = map(TensorRole::kUp), down = map(TensorRole::kDown);
    at::Tensor output_gate_1D;
    if (const TensorSpec* gate_of_output = tensors.find(TensorRole::kSharedGate)) {
      output_gate_1D = plain(*gate_of_output).held;
    }
    return std::make_unique<SwigluMlp>(std::move(gate), std::move(up), std::move(down), options_.axis,
                                       std::move(output_gate_1D));
  }

  /// What of a layer's experts trains itself: their maps or the biases of these. Keeps nothing of the builder, so that
  /// loads may choose its experts when the model is built.
  struct TrainedStack {
    TensorSpec tensor;
    ParameterInfo info;  ///< over all experts
    MatrixCut cut;
    ExpertPlacement placement;
    at::ScalarType wide;
    WeightSource* source;
    ParameterSet* parameters;

    /// The parameter of those of `experts` (empty: all) that this rank holds.
    TrainedExperts make(const std::vector<int64_t>& experts) const {
      ParameterInfo own = info;
      own.hold_experts(experts);
      TrainedExperts trained{nullptr, local_experts(experts, placement.first, placement.count)};
      std::vector<int64_t> shape = tensor.shape;
      shape.front() = cut.outputs(shape.front());
      if (shape.size() > 1) shape.back() = cut.inputs(shape.back());
      shape.insert(shape.begin(), static_cast<int64_t>(trained.experts.size()));
      at::Tensor stack = at::empty(shape, wide);
      for (size_t row = 0; row < trained.experts.size(); ++row) {
        const std::string name = expert_name(tensor.name, placement.first + trained.experts[row]);
        stack[static_cast<int64_t>(row)].copy_(part_of_expert(source->read(name, tensor.shape), cut));
      }
      trained.rows = &parameters->add(own, stack);
      return trained;
    }
  };
  /// The part of an expert's map or bias.
  static at::Tensor part_of_expert(const at::Tensor& whole, const MatrixCut& cut) {
    if (whole.dim() > 1) return cut.part_of(whole);
    return whole.narrow(0, cut.first_output(whole.size(0)), cut.outputs(whole.size(0)));
  }
  TrainedStack trained_stack(const TensorSpec& tensor) {
    ParameterInfo info = stack_of(tensor, tensor.name);
    const MatrixCut cut = cut_of(tensor);
    if (cut.cuts_outputs()) info.hold_part(1, cut.first_output(tensor.shape.front()), tensor.shape.front());
    if (cut.cuts_inputs()) info.hold_part(2, cut.first_input(tensor.shape.back()), tensor.shape.back());
    return {tensor, info, cut, options_.placement, accumulate_dtype(options_.compute), &source_, &model_.parameters};
  }
  /// Calls `make` with the experts, now or when they are chosen.
  void when_chosen(LayerId layer, const StackExperts& experts,
                   std::function<void(const std::vector<int64_t>& experts)> make) {
    if (experts.are_open()) model_.open_stacks.push_back({layer, experts.top, std::move(make)});
    else make(experts.listed);
  }

  /// Frozen biases of this rank's experts, those outputs that it holds.
  GroupedBias frozen_bias(const TensorSpec& tensor) {
    const ExpertPlacement& placement = options_.placement;
    const MatrixCut cut = cut_of(tensor);
    std::vector<at::Tensor> rows;
    for (int64_t e = placement.first; e < placement.first + placement.count; ++e) {
      rows.push_back(part_of_expert(source_.read(expert_name(tensor.name, e), tensor.shape), cut));
    }
    const at::Tensor bias_eO = at::stack(rows).to(options_.device, options_.compute);
    const int64_t outputs = tensor.shape.front();
    const TensorPart part = cut.cuts_outputs() ? TensorPart{0, cut.first_output(outputs), outputs} : TensorPart{};
    for (int64_t e = 0; e < placement.count; ++e) {
      model_.plain.push_back({expert_name(tensor.name, placement.first + e), bias_eO[e], part, /*of_expert=*/true});
    }
    return GroupedBias(bias_eO);
  }

  /// The parameter of a layer's experts that is called `name`.
  ParameterInfo stack_of(const TensorSpec& tensor, const std::string& name) const {
    ParameterInfo info = parameter_of(tensor, name);
    info.replicas = Replicas::kExpertReplicas;
    info.first_expert = options_.placement.first;
    info.num_experts = options_.placement.total;
    return info;
  }

  std::unique_ptr<GroupedLinear> grouped(const TensorSpec& tensor, const TensorSpec* bias_tensor, FrozenSlab* slab) {
    const ExpertPlacement& placement = options_.placement;
    const TrainedParts& parts = options_.trained;
    GroupedBias bias;
    if (bias_tensor != nullptr) {
      bias = parts.freezes(*bias_tensor) ? frozen_bias(*bias_tensor)
                                         : GroupedBias(*trained_stack(*bias_tensor).make({}).rows);
    }
    const LinearMap map = map_of(tensor);
    if (!map.is_held_frozen()) {
      return std::make_unique<GroupedLinear>(*trained_stack(tensor).make({}).rows, std::move(bias));
    }
    auto stack =
        std::make_unique<GroupedLinear>(frozen(map, placement.count, *slab), /*adapter=*/nullptr, std::move(bias));
    GroupedLinear* const own = stack.get();
    if (bias_tensor != nullptr && parts.trains(*bias_tensor)) {
      when_chosen(map.layer, map.trained_experts,
                  [own, of_bias = trained_stack(*bias_tensor)](const std::vector<int64_t>& experts) {
                    own->train_bias(of_bias.make(experts));
                  });
    }
    if (map.trained) {
      when_chosen(map.layer, map.trained_experts,
                  [own, of_map = trained_stack(tensor)](const std::vector<int64_t>& experts) {
                    own->train(of_map.make(experts));
                  });
    }
    if (map.adapter) {
      ParameterInfo info = stack_of(map, map.module());
      info.joint_name = map.joint_module;
      when_chosen(
          map.layer, map.adapter->experts,
          [own, map, info, cut = cut_of(map), local = placement.count, seed = options_.seed,
           parameters = &model_.parameters](const std::vector<int64_t>& experts) {
            AdapterSpec spec = *map.adapter;
            spec.experts = {experts};
            own->adapt(std::make_unique<Adapter>(spec, info, local, map.outputs, map.inputs, seed, *parameters, cut));
          });
    }
    return stack;
  }

  std::unique_ptr<Attention> attention(const AttentionSpec& spec, const TensorsByRole& tensors, FrozenSlab* slab) {
    return spec.kind == AttentionSpec::Kind::kLatent ? latent_attention(spec, tensors, slab)
                                                     : grouped_query_attention(spec, tensors, slab);
  }

  std::unique_ptr<Attention> grouped_query_attention(const AttentionSpec& spec, const TensorsByRole& tensors,
                                                     FrozenSlab* slab) {
    auto map = [&](TensorRole role) { return linear(tensors, role, slab); };
    auto part = [&](TensorRole role) {
      const TensorSpec* tensor = tensors.find(role);
      return tensor != nullptr ? part_of_vector(*tensor) : at::Tensor();
    };
    GroupedQueryWeights w;
    w.q = map(TensorRole::kQ);
    w.k = map(TensorRole::kK);
    w.v = map(TensorRole::kV);
    w.o = map(TensorRole::kO);
    w.q_norm = part(TensorRole::kQNorm);
    w.k_norm = part(TensorRole::kKNorm);
    w.sinks = part(TensorRole::kSinks);
    return std::make_unique<GroupedQueryAttention>(spec, std::move(w), options_.axis);
  }

  std::unique_ptr<Attention> latent_attention(const AttentionSpec& spec, const TensorsByRole& tensors,
                                              FrozenSlab* slab) {
    auto map = [&](TensorRole role) { return linear(tensors, role, slab); };
    LatentWeights w;
    if (spec.q_lora) {
      w.q_a = map(TensorRole::kQA);
      w.q_a_norm = norm(tensors.at(TensorRole::kQANorm));
      w.q_b = map(TensorRole::kQB);
    } else {
      w.q = map(TensorRole::kQ);
    }
    w.kv_a = map(TensorRole::kKvA);
    w.kv_a_norm = norm(tensors.at(TensorRole::kKvANorm));
    w.kv_b = map(TensorRole::kKvB);
    w.o = map(TensorRole::kO);
    return std::make_unique<LatentAttention>(spec, std::move(w), options_.axis);
  }

  void add_block(LayerId layer) {
    const TensorsByRole tensors(blueprint_.block_tensors(layer));
    BlockParts parts;
    parts.layer = layer;
    parts.dense_slab = slab(SlabKind::kDense, layer, tensors.maps(/*stacked=*/false));
    parts.input_norm = norm(tensors.at(TensorRole::kInputNorm));
    parts.post_attention_norm = norm(tensors.at(TensorRole::kPostAttentionNorm));
    parts.attention = attention(blueprint_.layer(layer).attention, tensors, parts.dense_slab);
    if (tensors.find(TensorRole::kGate) != nullptr) parts.mlp = mlp(tensors, parts.dense_slab);
    if (blueprint_.has_experts(layer)) add_experts(layer, tensors, parts);
    load(parts.dense_slab);
    load(parts.expert_slab);
    model_.blocks.emplace_back(std::move(parts), blueprint_.norm_eps);
    options_.loaded(layer, model_.parameters);
  }

  void add_experts(LayerId layer, const TensorsByRole& tensors, BlockParts& parts) {
    parts.router = std::make_unique<Router>(blueprint_.router, router_tensors(tensors));
    parts.expert_slab = slab(SlabKind::kExperts, layer, tensors.maps(/*stacked=*/true));
    const int64_t chunk = experts_at_a_time(blueprint_, options_.compute, options_.expert_chunk_bytes,
                                            options_.placement.count, this->parts());
    parts.experts = std::make_unique<RoutedExperts>(expert_mlp(tensors, parts.expert_slab), options_.placement, chunk,
                                                    *options_.exchange, options_.expert_axis);
  }

  ExpertMlp expert_mlp(const TensorsByRole& tensors, FrozenSlab* slab) {
    const ExpertSpec& spec = blueprint_.experts;
    auto map = [&](TensorRole role) {
      return grouped(tensors.at(role, /*stacked=*/true), tensors.find(role, /*stacked=*/true, /*bias=*/true), slab);
    };
    if (spec.joint_gate_up()) {
      auto gate_up = map(TensorRole::kGateUp), down = map(TensorRole::kDown);
      return {spec, std::move(gate_up), std::move(down)};
    }
    auto gate = map(TensorRole::kGate), up = map(TensorRole::kUp), down = map(TensorRole::kDown);
    return {spec, std::move(gate), std::move(up), std::move(down)};
  }

  RouterTensors router_tensors(const TensorsByRole& tensors) {
    RouterTensors router;
    const TensorSpec& map = tensors.at(TensorRole::kRouter);
    router.weight_ED = router_tensor(map);
    if (options_.router_adapter) {
      router.adapter = std::make_unique<Adapter>(*options_.router_adapter, parameter_of(map, map.module()), 0,
                                                 map.shape.at(0), map.shape.at(1), options_.seed, model_.parameters);
    }
    if (const TensorSpec* correction = tensors.find(TensorRole::kCorrectionBias)) {
      router.correction_E = source_.read(correction->name, correction->shape)
                                .to(options_.device, accumulate_dtype(options_.compute), false, /*copy=*/true);
    }
    if (const TensorSpec* bias = tensors.find(TensorRole::kRouter, /*stacked=*/false, /*bias=*/true)) {
      router.logit_bias_E = router_tensor(*bias);
    }
    return router;
  }

  // Frozen, the router keeps the checkpoint's dtype: scores are computed in fp32 from it.
  at::Tensor router_tensor(const TensorSpec& tensor) {
    if (options_.trained.trains(tensor)) return plain(tensor).held;
    at::Tensor held = source_.read(tensor.name, tensor.shape).to(options_.device);
    model_.plain.push_back({tensor.name, held, {}});
    return held;
  }

  void add_mtp(const TensorsByRole& tensors, const at::Tensor& trunk_norm, const Plain& trunk_head) {
    const TensorSpec& projection = tensors.at(TensorRole::kMtpProjection);
    if (blueprint_.num_mtp_layers < 1 || !source_.has(projection.name)) {
      throw UserError(
          str("mtp.loss_weight is above 0, but the checkpoint has no MTP module (", projection.name, "); set it to 0"));
    }
    add_block(blueprint_.mtp());
    Mtp::Parts parts;
    auto extra = [&](TensorRole role) { return plain(tensors.at(role)); };
    parts.embedding_norm = extra(TensorRole::kMtpEmbeddingNorm).held;
    parts.hidden_norm = extra(TensorRole::kMtpHiddenNorm).held;
    parts.trunk_norm = trunk_norm;
    parts.slab = slab(SlabKind::kDense, blueprint_.turn(), {projection});
    parts.projection = linear(projection, parts.slab);
    load(parts.slab);
    const Embedding& trunk = model_.embedding;
    parts.embedding =
        embedding(shared_or_own(tensors.at(TensorRole::kMtpEmbedding), {trunk.weight(), trunk.parameter()}));
    const Plain head = shared_or_own(tensors.at(TensorRole::kMtpHead), trunk_head);
    auto [head_norm_D, head_norm] = extra(TensorRole::kMtpHeadNorm);
    parts.head = make_head({head_norm_D, head.held, head_norm, head.trained});
    model_.mtp = std::make_unique<Mtp>(std::move(parts), blueprint_.norm_eps);
  }

  // The checkpoint carries copies of embedding and head in the module; a copy that equals the trunk's is not held
  // twice, and where it trains it goes on being one tensor, as the paper shares them. Copies may differ in other
  // ranks' rows alone: ranks agree.
  Plain shared_or_own(const TensorSpec& tensor, const Plain& trunk) {
    if (!source_.has(tensor.name)) return trunk;
    at::Tensor own_VD = vocabulary_rows(tensor), trunk_VD = trunk.held.detach();
    at::Tensor differs = at::full({1}, !at::equal(own_VD.to(trunk_VD.device(), trunk_VD.scalar_type()), trunk_VD),
                                  trunk_VD.options().dtype(at::kBool));
    options_.axis.max(differs);
    return differs.item<bool>() ? of_vocabulary(tensor, own_VD) : trunk;
  }

  Model& model_;
  const Blueprint& blueprint_;
  WeightSource& source_;
  const ModelOptions& options_;
  VocabularyPart vocabulary_;
};

}  // namespace

FrozenSlab* Model::slab(SlabKind kind, LayerId layer) const {
  if (!stage.holds(layer)) return nullptr;
  if (layer.is_block()) return block(layer).slab(kind);
  return mtp && layer == blueprint.turn() && kind == SlabKind::kDense ? mtp->parts().slab : nullptr;
}

int64_t Model::scratch_elements() const {
  int64_t most = 0;
  for (const Block& block : blocks) most = std::max(most, block.scratch_elements());
  if (mtp && mtp->parts().slab != nullptr) most = std::max(most, mtp->parts().projection->frozen()->scratch_elements());
  return most;
}

void Model::choose_experts(const ExpertsOfLayers& experts, const std::function<void(LayerId, ParameterSet&)>& made) {
  for (size_t i = 0; i < open_stacks.size(); ++i) {
    const OpenStack& open = open_stacks[i];
    const auto chosen = experts.find(open.layer.number());
    MT_CHECK(chosen != experts.end() && static_cast<int64_t>(chosen->second.size()) == open.count, open.layer,
             ": no choice of ", open.count, " experts");
    open.chosen(chosen->second);
    if (i + 1 == open_stacks.size() || open_stacks[i + 1].layer != open.layer) made(open.layer, parameters);
  }
  open_stacks.clear();
}

std::unique_ptr<Model> build_model(const Blueprint& blueprint, WeightSource& source, const ModelOptions& options) {
  auto model = std::make_unique<Model>(blueprint, options);
  Builder(*model, source, options).build();
  return model;
}

}  // namespace moetune
