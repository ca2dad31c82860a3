#include "trainer/plan/memory_plan.h"

#include <algorithm>
#include <iomanip>
#include <map>
#include <sstream>
#include <tuple>
#include <utility>

#include "moe/block.h"
#include "moe/head.h"
#include "moe/model.h"
#include "parallel/base/ceil_div.h"
#include "parallel/base/error.h"
#include "parallel/base/units.h"
#include "parallel/bytes/weight_store.h"
#include "trainer/plan/pipeline_plan.h"
#include "trainer/plan/planned_step.h"
#include "trainer/recipe/recipe_meaning.h"
#include "trainer/state/checkpoint_part.h"
#include "trainer/update/gradients.h"
#include "trainer/update/optimizer.h"

namespace moetune {
namespace {

using Span = MemoryPart::Span;

/// A sum by name, in the order in which the names came.
class Sums {
 public:
  void add(const std::string& name, int64_t amount) {
    const auto found = std::find_if(sums_.begin(), sums_.end(), [&](const auto& sum) { return sum.first == name; });
    found == sums_.end() ? static_cast<void>(sums_.emplace_back(name, amount))
                         : static_cast<void>(found->second += amount);
  }
  const std::vector<std::pair<std::string, int64_t>>& all() const { return sums_; }

 private:
  std::vector<std::pair<std::string, int64_t>> sums_;
};

class Planner {
 public:
  Planner(const Blueprint& blueprint, const Recipe& recipe, const MeshShape& mesh, const Machine& machine,
          const StepRows& rows, const PipelinePlan& pipeline, int64_t stage)
      : blueprint_(blueprint),
        recipe_(recipe),
        mesh_(mesh),
        stage_(pipeline.stages.at(stage)),
        machine_(machine),
        placer_(blueprint, recipe, mesh, machine, pipeline, stage),
        compute_(scalar_type(recipe.model.compute)),
        base_(recipe.model.base),
        size_(static_cast<int64_t>(c10::elementSize(compute_))),
        with_mtp_(recipe.mtp.trains() && stage_.is_last()),
        parts_trained_(trained_parts(recipe)),
        local_experts_(blueprint.router.experts / mesh.ep),
        data_ranks_(mesh.dp * mesh.ep),
        parts_{mesh.tp, mesh.expert_tp, recipe.model.base},
        traits_(planned_traits(blueprint, recipe, mesh, machine.device)),
        blocks_(planned_blocks(blueprint, recipe)),
        alike_(first_alike(blueprint, blocks_)) {
    find_rising();
    plan_.device = machine.device;
    plan_.pipeline = pipeline;
    plan_.stage = stage;
    const int64_t sequences = ceil_div(recipe.train.batch, data_ranks_), longest = recipe.data.max_tokens;
    plan_.step_rows = rows.step > 0 ? rows.step : sequences * longest;
    // Whole sequences are one way to cut groups; whole documents make one longer than its share by one of them.
    plan_.rows = rows.group > 0 ? rows.group
                                : std::min({plan_.step_rows, ceil_div(sequences, pipeline.groups) * longest,
                                            ceil_div(plan_.step_rows, pipeline.groups) + longest});
    plan_.held_rows = ceil_div(plan_.rows, mesh.tp);
    add_plain();
    add_trained();
    add_scratch();
    common_ = std::move(plan_);
  }

  /// The last blocks of the stage, which the way up comes to: what others keep is nothing.
  int64_t rising_blocks() const { return num_blocks_ - first_rising_; }

  MemoryPlan plan(const KeptBlocks& kept) {
    plan_ = common_;
    plan_.kept = kept;
    add_step();
    add_frozen();
    return std::move(plan_);
  }

 private:
  void add(const std::string& name, int64_t bytes, const std::string& formula, Span span = Span::kRun) {
    add(name, bytes, formula, SlabTier::kDevice, span);
  }
  void add(const std::string& name, int64_t bytes, const std::string& formula, SlabTier tier, Span span = Span::kRun) {
    const bool on_host = tier == SlabTier::kHost || plan_.device == at::kCPU;
    if (bytes > 0) plan_.parts.push_back({name, bytes, on_host, span, formula});
  }

  /// Of the stage: visit(map, what of it a rank of those that share it holds)
  template <typename Visit>
  void for_each_map(const Visit& visit) const {
    for_each_map_of(stage_, [&](const LinearMap& map) { visit(map, map.group == "mtp" ? map : map.part(parts_)); });
  }
  template <typename Visit>
  void for_each_map_of(const Stage& stage, const Visit& visit) const {
    const bool mtp = recipe_.mtp.trains() && stage.is_last();
    for (const LayerId layer : stage.blocks(blueprint_, mtp)) {
      for (const LinearMap& map : blocks_[layer.number()]) visit(map);
    }
    if (mtp) visit(mtp_projection(blueprint_, parts_trained_));
  }

  /// Whether the stage has the tensor, as Model does.
  bool is_here(const TensorSpec& tensor) const {
    return tensor.role == TensorRole::kEmbedding ? stage_.has_embedding(blueprint_, recipe_.mtp.trains())
                                                 : stage_.holds(tensor.layer);
  }

  /// Numbers of a tensor that train, complete in `layer`: of the whole model, and of a rank of a stage that has it,
  /// which shares its gradient with `replicas`.
  void train(const TensorSpec& tensor, LayerId layer, Role role, Replicas replicas, int64_t whole, int64_t held) {
    const at::ScalarType gradients =
        ParameterSet::gradient_dtype(layer, role, tensor.shape.size() > 1, gradient_dtype(recipe_), compute_);
    if (whole == 0) return;
    trained_.add(tensor.group, whole);
    if (!is_here(tensor)) return;
    plan_.trained_numbers += held;
    gradients_[layer] += held * static_cast<int64_t>(c10::elementSize(gradients));
    by_layer_[{layer, role != Role::kWeight, replicas}] += Partition::flat_numbers(held, role);
    if (role != Role::kWeight) return;
    trained_weights_ += held;
    weights_by_layer_[{layer, replicas}] += Partition::flat_numbers(held, role);
  }

  void find_rising() {
    const std::vector<LayerId> layers = stage_.blocks(blueprint_, with_mtp_);
    num_blocks_ = layers.back().number() + 1;
    const LayerId lowest = lowest_trained(blueprint_, recipe_);
    const bool module_alone = with_mtp_ && lowest > blueprint_.mtp() && mtp_input_trains(blueprint_, recipe_);
    first_rising_ = module_alone ? blueprint_.mtp().number()
                                 : std::clamp<int64_t>(lowest.number(), layers.front().number(), num_blocks_);
  }

  void add_plain() {
    std::string names;  // of what is frozen
    for (const TensorSpec& tensor : plain_tensors(blueprint_, recipe_.mtp.trains())) {
      const int64_t held = held_numbers(tensor, parts_, local_experts_);
      if (parts_trained_.trains(tensor)) {
        const StackExperts experts = parts_trained_.experts_of(tensor);
        const int64_t most =
            held_numbers(tensor, parts_, experts.most_of_rank(blueprint_.router.experts, local_experts_));
        const int64_t whole = held_numbers(tensor, {}, experts.count(blueprint_.router.experts));
        train(tensor, blueprint_.completing_layer(tensor), Role::kWeight,
              replicas_of(tensor.stack > 0, is_cut(tensor, parts_)), whole, most);
        // transformers has no MTP module.
        const bool leaves =
            recipe_.adapter && !tensor.layer.is_mtp() && parts_beside_adapter(blueprint_).trains(tensor);
        if (leaves) plan_.adapter_numbers += whole;
      }
      if (!parts_trained_.freezes(tensor) || !is_here(tensor)) continue;
      const std::string name = tensor.bias || tensor.role == TensorRole::kSinks ? "biases" : tensor.group;
      if (names.find(name) == std::string::npos) names += (names.empty() ? "" : ", ") + name;
      const int64_t wide = static_cast<int64_t>(c10::elementSize(accumulate_dtype(compute_)));
      plan_.plain_bytes += held * (tensor.held == Held::kBias ? wide : tensor.held == Held::kStored ? 2 : size_);
    }
    add("plain tensors", plan_.plain_bytes, "held as they are: " + names);
  }

  /// The packed weights come last, for what the rest leaves decides where they lie; they are listed first.
  void add_frozen() {
    plan_.weights = placer_.place(plan_.device_bytes());
    const WeightPlacement& placed = plan_.weights;
    if (placed.slabs.empty()) return;
    Sums numbers;
    for_each_map([&](const LinearMap& map, const LinearMap& held) {
      if (!map.is_held_frozen()) return;
      numbers.add(map.stack > 0 ? "" : map.group, map.units(local_experts_) * held.outputs * held.inputs);
    });
    std::string dense;
    for (const auto& [group, count] : numbers.all()) {
      if (!group.empty()) dense += str(dense.empty() ? "" : ", ", group, " ", count_text(count));
    }
    const auto share = [](int64_t shards) { return shards > 1 ? str(", 1/", shards, " of each") : ""; };
    const std::string experts =
        str(parts_.experts > 1 ? str("1/", parts_.experts, " of each of ") : "", local_experts_, " of ",
            blueprint_.router.experts, " experts a layer in ", to_string(base_), share(placed.expert_shards));
    std::vector<MemoryPart> rest = std::exchange(plan_.parts, {});
    add("frozen dense maps", placed.dense_bytes, str(dense, share(placed.dense_shards)));
    add("frozen experts", placed.expert_bytes,
        placed.host_layers.empty() ? experts : str(experts, ", but for ", placed.host_layers.size(), " layers"));
    add("slabs on their way", placed.buffer_bytes,
        str(WeightStore::kBuffers, " of the largest of each kind that is sharded or streams in"));
    add("frozen, host tier", placed.host_bytes,
        str(placed.host_layers.size(), " layers' experts", placed.dense_on_host ? " and all dense maps" : "",
            share(placed.expert_shards)),
        SlabTier::kHost);
    plan_.parts.insert(plan_.parts.end(), rest.begin(), rest.end());
  }

  void add_trained() {
    for_each_map_of(Stage::whole(blueprint_),
                    [&](const LinearMap& map) { map.trained ? add_weight(map) : add_adapter(map); });
    add_router_adapters();
    plan_.trained_by_group = trained_.all();
    std::string numbers;
    const int64_t adapters = plan_.trained_numbers - trained_weights_;
    if (trained_weights_ > 0) numbers = str(count_text(trained_weights_), " weights");
    if (adapters > 0) numbers += str(numbers.empty() ? "" : ", ", count_text(adapters), " adapter numbers");
    plan_.trained = place_trained(
        weights_by_layer_, recipe_, mesh_, machine_,
        planned_step(blueprint_, recipe_, /*kept=*/{}, plan_.pipeline.place(plan_.stage), plan_.pipeline.groups));
    const TrainedPlacement& placed = plan_.trained;
    const bool sharded = std::any_of(placed.slabs.begin(), placed.slabs.end(),
                                     [](const PlacedTrained& slab) { return slab.shards > 1; });
    const std::string share = sharded ? ", of layers a part" : "";
    add("trained, working copies",
        Parameter::working_bytes(plan_.trained_numbers - trained_weights_, compute_) + placed.device_bytes,
        str(numbers, " in ", to_string(recipe_.model.compute), share));
    add("trained layers on their way", placed.buffer_bytes,
        str(WeightStore::kBuffers, " of the largest of each kind that is sharded or streams in"));
    add("trained, host tier", placed.host_bytes, str("working copies", share), SlabTier::kHost);
    add("gradients", most_gradients(),
        str(plan_.pipeline.groups > 1 ? "of all layers" : "of one layer", ", matrices in ",
            compute_ == at::kDouble ? "fp64" : to_string(recipe_.train.gradients)));
    int64_t shards = 0, longest = 0, new_numbers = placed.new_numbers;
    for (const auto& [place, count] : by_layer_) {
      const auto& [layer, adapters, replicas] = place;
      const int64_t shard =
          Partition::shard_numbers(count, num_replicas(mesh_, replicas), adapters ? Role::kAdapterA : Role::kWeight);
      shards += shard;
      longest = std::max(longest, shard);
      if (adapters) new_numbers += shard;
      std::vector<TrainedLayer>& layers = plan_.trained_layers;
      if (layers.empty() || layers.back().layer != layer) layers.push_back({layer});
      layers.back().numbers += count;
      layers.back().shard_numbers += shard;
    }
    const SlabTier sums = tier_of_gradients(recipe_.offload), state = slab_tier(recipe_.offload.optimizer);
    const std::string of_all = str(count_text(shards), " of ", numbers);
    add("summed gradients", GradientReducer::sum_bytes(shards, compute_), of_all, sums);
    if (plan_.device != at::kCPU && state == SlabTier::kHost) {
      const HostWindow::Traffic in{accumulate_dtype(compute_), sums == SlabTier::kHost ? 0 : longest},
          out{compute_, placed.longest_written};
      add("updates on their way", HostWindow::bytes(in) + HostWindow::bytes(out), "pieces between host and device",
          SlabTier::kHost);
    }
    if (plan_.device != at::kCPU && sums == SlabTier::kHost) {
      add("gradients on their way", GradientReducer::sum_bytes(longest, compute_), "of one layer");
    }
    add("optimizer", Optimizer::state_bytes(shards, compute_) + Optimizer::working_bytes(new_numbers, compute_),
        str(of_all, ", ", Optimizer::state_bytes(1, compute_), " B each"), state);
  }

  void add_weight(const LinearMap& map) {
    const MatrixCut cut = parts_.cut_without_copies(map);
    const LinearMap held = map.part(cut);
    const int64_t numbers = units_on_rank(map, map.trained_experts) * held.outputs * held.inputs;
    train(map, blueprint_.completing_layer(map), Role::kWeight,
          replicas_of(map.stack > 0, cut.cuts_outputs() || cut.cuts_inputs()),
          units_in_all(map, map.trained_experts) * map.outputs * map.inputs, numbers);
  }

  void add_adapter(const LinearMap& map) {
    if (!map.adapter) return;
    const MatrixCut cut = parts_.cut_without_copies(map);
    const int64_t rank = map.adapter->rank, units = units_on_rank(map, map.adapter->experts),
                  all = units_in_all(map, map.adapter->experts);
    const auto half = [&](bool is_cut, int64_t whole, int64_t held) {
      train(map, map.layer, Role::kAdapterA, replicas_of(map.stack > 0, is_cut), all * rank * whole,
            units * rank * held);
      plan_.adapter_numbers += all * rank * whole;
    };
    half(cut.cuts_inputs(), map.inputs, cut.inputs(map.inputs));
    half(cut.cuts_outputs(), map.outputs, cut.outputs(map.outputs));
  }

  /// Maps of a stack that are of `experts`: on the rank that has most of them, and in all.
  int64_t units_on_rank(const LinearMap& map, const StackExperts& experts) const {
    return map.stack > 0 ? experts.most_of_rank(map.stack, local_experts_) : 1;
  }
  static int64_t units_in_all(const LinearMap& map, const StackExperts& experts) {
    return map.stack > 0 ? experts.count(map.stack) : 1;
  }

  void add_router_adapters() {
    const std::optional<AdapterSpec> adapter = router_adapter(recipe_);
    if (!adapter) return;
    for (const TensorSpec& tensor : plain_tensors(blueprint_, recipe_.mtp.trains())) {
      if (tensor.role != TensorRole::kRouter || tensor.bias) continue;
      const int64_t numbers = Adapter::numbers(adapter->rank, 1, tensor.shape.at(0), tensor.shape.at(1));
      train(tensor, tensor.layer, Role::kAdapterA, Replicas::kEverywhere, numbers, numbers);
      plan_.adapter_numbers += numbers;
    }
  }

  void add_scratch() {
    chunk_experts_ = experts_at_a_time(blueprint_, compute_, ModelOptions().expert_chunk_bytes, local_experts_, parts_);
    for (const LayerId layer : stage_.blocks(blueprint_, with_mtp_)) {
      plan_.scratch_elements =
          std::max(plan_.scratch_elements, block_scratch_elements(blocks_[layer.number()], traits_, chunk_experts_));
    }
    if (with_mtp_) {
      plan_.scratch_elements = std::max(
          plan_.scratch_elements, block_scratch_elements({mtp_projection(blueprint_, parts_trained_)}, traits_, 0));
    }
    add("dense weights in use", Scratch::bytes(plan_.scratch_elements, compute_),
        str("one layer's mixing and ", chunk_experts_, " of ", local_experts_, " experts in ",
            to_string(recipe_.model.compute)));
  }

  /// Other ranks than its own that want a token at the most: the chosen experts lie in the chosen groups.
  int64_t ranks_of_token() const {
    const int64_t groups_ranks =
        blueprint_.router.top_groups * std::max<int64_t>(1, mesh_.ep / blueprint_.router.num_groups);
    return mesh_.ep % blueprint_.router.num_groups == 0 || blueprint_.router.num_groups % mesh_.ep == 0
               ? std::min({blueprint_.router.top_k, mesh_.ep, groups_ranks})
               : std::min(blueprint_.router.top_k, mesh_.ep);
  }

  void add_step() {
    // U rows of the documents, of which a rank of the tensor axis holds T; those of all ranks that share experts go out
    // from each.
    const int64_t U = plan_.rows, T = plan_.held_rows, routed = T * parts_.experts, D = blueprint_.width,
                  K = blueprint_.router.top_k;
    const std::string rows_of_all = mesh_.tp > 1 ? str(mesh_.tp, " T") : "T";
    const std::vector<LayerId> layers = stage_.blocks(blueprint_, with_mtp_);
    const int64_t moe_blocks =
        std::count_if(layers.begin(), layers.end(), [&](LayerId layer) { return blueprint_.has_experts(layer); });
    const int64_t in_flight = plan_.pipeline.groups_in_flight(plan_.stage);
    // Of the groups in flight, that are not all as long as the longest.
    const int64_t flying = std::min(in_flight * T, ceil_div(plan_.step_rows, mesh_.tp));
    const std::string of_groups = in_flight > 1 ? str(in_flight, " groups x ") : "";
    const int64_t sends = mesh_.ep > 1 ? ranks_of_token() : 0;
    if (plan_.device != at::kCPU) add("workspaces", kWorkspaceBytes, "of cuBLAS and cuBLASLt");
    add("tokens and positions", plan_.step_rows * (9 * 8 + blueprint_.rotary.dim * size_),
        str(plan_.pipeline.groups > 1 ? str("all ", plan_.step_rows, " rows") : rows_of_all,
            " x (nine indices + rotary angles)"));
    const int64_t kept_blocks = rising_blocks();
    const int64_t inputs = kept_blocks * flying * D * size_,
                  routing = moe_blocks * flying * parts_.experts * (2 * K + 4 * sends);
    if (recipe_.offload.activations == OffloadTier::kNone) {
      add("kept block inputs", inputs + routing,
          str(of_groups, kept_blocks, " blocks x T x (", D, " x ", size_, " B + routing)"));
    } else {
      // On the device: the one in use, one on its way out or in.
      add("kept routing", routing + 2 * T * D * size_, str("T x routing of ", moe_blocks, " blocks, two block inputs"));
      add("kept block inputs", inputs, str(of_groups, kept_blocks, " blocks x T x ", D, " x ", size_, " B"),
          SlabTier::kHost);
    }

    // Tokens whose rows are at the experts at a time, and the rows they make here if experts are chosen evenly.
    int64_t tokens = routed;
    const int64_t buffer = recipe_.exchange.buffer_rows.value_or(0);
    if (sends > 0 && buffer > 0 && routed * sends > buffer) tokens = std::max<int64_t>(1, buffer / mesh_.ep);
    const int64_t copies = std::max<int64_t>(1, sends), received = tokens * copies;
    const int64_t even_rows = ceil_div(tokens * K * chunk_experts_, local_experts_);
    const int64_t chunk_rows = std::min(tokens * K, static_cast<int64_t>(kChunkSkew * static_cast<double>(even_rows)));
    const int64_t slice_tokens = recipe_.train.slice_tokens.value_or(automatic_slice_tokens(at::Device(plan_.device)));
    const int64_t slice_rows = ceil_div(std::min(U, std::max(slice_tokens, recipe_.data.max_tokens)), mesh_.tp);
    // Documents that share a slice make at most slice_tokens rows; a longer one has its own.
    const int64_t shared_rows = std::min(slice_rows, ceil_div(slice_tokens, mesh_.tp));
    PassTraits traits = traits_;
    traits.several_slices = T > slice_rows;
    const int64_t sent = sends > 0 ? tokens * sends * D * size_ : 0;
    // Rows, their weights and the gradients of their sums as they go out, the gradients of both as they come home.
    const int64_t gathered = parts_.experts > 1 ? routed * (3 * D + 2 * K) * size_ : 0;

    // What all keep at the turn; and what, as the way up comes to a block, those below it keep and it needs itself.
    int64_t kept_bytes = 0, going_up = 0, mixing = 0, experts = 0;
    std::map<size_t, BlockCost> costs;
    for (int64_t layer = first_rising_; layer < num_blocks_; ++layer) {
      const size_t first = alike_[layer];
      if (!costs.contains(first)) costs.emplace(first, block_cost(blueprint_, blocks_[first], traits));
      const BlockCost& row = costs.at(first);
      const Keep keep = plan_.kept.of(num_blocks_ - 1 - layer);
      const int64_t own = row.kept_bytes(keep, T, routed * copies, routed * K);
      // What attention keeps is a part of the graph that is made again.
      const int64_t again =
          keep == Keep::kAll ? 0 : T * row.saved - row.kept_bytes(std::min(keep, Keep::kAttention), T, 0, 0);
      going_up = std::max(going_up, kept_bytes + own + again);
      kept_bytes += own;
      mixing = std::max({mixing, shared_rows * row.mixing, slice_rows * row.mixing_of_long});
      if (!row.is_moe) continue;
      const int64_t outer = parts_trained_.has(ModelPart::kExperts)
                                ? std::min(chunk_experts_, parts_trained_.experts().most_of_rank(
                                                               blueprint_.router.experts, local_experts_)) *
                                      parts_.expert_features(blueprint_).outputs(blueprint_.experts.width) * D * size_
                                : 0;
      experts = std::max(experts, gathered + received * row.experts.received + chunk_rows * row.experts.chunk + outer);
    }
    // The graph of the block in flight, as far as what the blocks above it kept has not made room.
    const int64_t graph = std::max<int64_t>(0, going_up - kept_bytes);
    if (flying > T) kept_bytes = ceil_div(kept_bytes, T) * flying;
    plan_.kept_bytes = kept_bytes;
    add("kept of the way down", kept_bytes, str(of_groups, to_string(plan_.kept)));
    if (!stage_.is_whole()) {
      // What was sent is held until the next stage takes it, which may be as late as its gradient comes back; with
      // whole loads the last stage holds what its head has not come to.
      const bool holds_outputs = !stage_.is_last() || plan_.pipeline.whole_loads;
      const int64_t held = 3 + (holds_outputs ? in_flight : 0);
      add("between stages", held * T * D * size_, str(held, " T x D on their way in and out, on both ways"));
    }
    // A block on the way up: its graph, gradients of its output and input and of the experts' input, and what is in
    // flight.
    const int64_t between = 3 * T * D * size_;
    const int64_t block = graph + between + std::max(mixing, experts);
    const std::string flight =
        mixing > experts ? str(count_text(slice_rows), " rows of mixing") : str(count_text(chunk_rows), " routed rows");
    add("one block, way up", block + sent,
        str("T x ", bytes_text(T > 0 ? (graph + between) / T : 0), " + ", flight,
            gathered > 0 ? str(" + ", count_text(routed), " gathered") : "",
            sends > 0 ? str(" + ", count_text(received), " received") : ""),
        Span::kPhase);
    const int64_t head_rows = std::min(ModelOptions().head_chunk_rows, U), vocab = ceil_div(blueprint_.vocab, mesh_.tp);
    const int64_t head =
        Head::chunk_bytes(head_rows, vocab, compute_) + 2 * U * D * size_ + (mesh_.tp > 1 ? T * D * size_ : 0);
    if (stage_.is_last())
      add("head", head, str(head_rows, " rows of logits, ", rows_of_all, " x ", D, " and its gradient"), Span::kPhase);
    // The module's block stands on the last block's output, the head's gradient and the projection's graph.
    if (with_mtp_) {
      add("MTP block, way up", block + sent + (5 * T + U) * D * size_, "as a block, on six more T x D", Span::kPhase);
    }
    int64_t reduction = 0, reduced = 0;
    for (const auto& [place, count] : by_layer_) {
      reduction =
          std::max(reduction, GradientReducer::bytes(count, num_replicas(mesh_, std::get<Replicas>(place)), compute_));
      reduced = std::max(reduced, count);
    }
    add("gradient reduction", T * D * size_ + reduction, str(count_text(reduced), " numbers of a layer at a time"),
        Span::kPhase);
  }

  /// Bytes of the gradients that exist at a time: those of one layer, and from the turn on those of an embedding that
  /// is the head too, or that the MTP module shares; the module's block stands on those of the turn besides. Several
  /// groups of documents add to those of all layers, until the last is through.
  int64_t most_gradients() {
    const int64_t embedding = gradients_[LayerId::embedding()];
    const int64_t begun = with_mtp_ || blueprint_.tied_embeddings ? embedding : 0;
    int64_t most = embedding, all = 0;
    for (const auto& [layer, bytes] : gradients_) {
      all += bytes;
      if (layer != LayerId::embedding()) most = std::max(most, begun + bytes);
    }
    if (plan_.pipeline.groups > 1) return all;
    return with_mtp_ ? std::max(most, gradients_[blueprint_.mtp()] + gradients_[blueprint_.turn()] + begun) : most;
  }

  const Blueprint& blueprint_;
  const Recipe& recipe_;
  const MeshShape& mesh_;
  const Stage stage_;
  Machine machine_;
  WeightPlacer placer_;
  at::ScalarType compute_;
  BaseFormat base_;
  int64_t size_;
  bool with_mtp_;
  TrainedParts parts_trained_;
  int64_t local_experts_, data_ranks_;
  TensorParts parts_;
  PassTraits traits_;
  int64_t chunk_experts_ = 0;
  int64_t num_blocks_ = 0, first_rising_ = 0;  ///< numbers behind the stage's last block and of the lowest that goes up
  std::vector<std::vector<LinearMap>> blocks_;
  std::vector<size_t> alike_;  ///< for each block the first that is made like it
  Sums trained_;
  /// Numbers of this rank's flat vectors, as they are reduced: by layer, adapters apart, and kind of copies.
  std::map<std::tuple<LayerId, bool, Replicas>, int64_t> by_layer_;
  WeightNumbers weights_by_layer_;
  std::map<LayerId, int64_t> gradients_;  ///< bytes on this rank
  int64_t trained_weights_ = 0;           // of them those that are no adapters'
  MemoryPlan common_, plan_;
};

int64_t most_at_a_time(const MemoryPlan& plan, bool on_host) {
  int64_t always = 0, phase = 0;
  for (const MemoryPart& part : plan.parts) {
    if (part.on_host != on_host) continue;
    if (part.span == Span::kRun) always += part.bytes;
    else phase = std::max(phase, part.bytes);
  }
  return always + phase;
}

MemoryPlan plan_stage(const Blueprint& blueprint, const Recipe& recipe, const MeshShape& mesh, const Machine& machine,
                      const StepRows& rows, const PipelinePlan& pipeline, int64_t stage) {
  Planner planner(blueprint, recipe, mesh, machine, rows, pipeline, stage);
  MemoryPlan plan = planner.plan(kept_blocks(recipe.train.keep, planner.rising_blocks()));
  if (recipe.train.keep.kind != KeepLayers::Kind::kAuto || machine.device_memory_bytes == 0) return plan;
  const auto memory = static_cast<double>(machine.device_memory_bytes);
  const int64_t room = static_cast<int64_t>((1.0 - kKeepReserve) * memory) - machine.withheld_bytes,
                unkept = plan.device_bytes(), rising = planner.rising_blocks();
  for (int64_t fits = 0, too_many = KeptBlocks::most_steps(rising) + 1; too_many - fits > 1;) {
    const int64_t tried = fits + (too_many - fits) / 2;
    MemoryPlan more = planner.plan(KeptBlocks::after(tried, rising));
    const bool moves = more.weights.host_layers != plan.weights.host_layers ||
                       more.weights.dense_on_host != plan.weights.dense_on_host;
    if (moves || more.device_bytes() > room) {
      too_many = tried;
    } else {
      fits = tried;
      plan = std::move(more);
    }
  }
  plan.unkept_bytes = unkept;
  return plan;
}

/// Where checkpoints are written beside training, which all stages do or none. On top of all else, for it is done only
/// where there is room.
void add_copied_saves(std::vector<MemoryPlan>& stages, const Recipe& recipe, const Machine& machine) {
  // What the plan does not know: the process itself, files that the system caches.
  constexpr double kRoom = 0.85;
  const at::ScalarType compute = scalar_type(recipe.model.compute);
  int64_t most = 0;
  bool room = true;
  for (MemoryPlan& plan : stages) {
    int64_t numbers = 0;
    for (const TrainedLayer& layer : plan.trained_layers) numbers += layer.shard_numbers;
    plan.copied_save_bytes = CheckpointPart::copied_bytes(numbers, compute);
    most = std::max(most, plan.copied_save_bytes);
    room = room && (machine.host_memory_bytes == 0 || static_cast<double>(plan.host_bytes() + plan.copied_save_bytes) <=
                                                          kRoom * static_cast<double>(machine.host_memory_bytes));
  }
  const bool beside = saves_beside_training(recipe.checkpoint, most, room);
  for (MemoryPlan& plan : stages) {
    plan.saves_beside = beside;
    if (!beside) plan.copied_save_bytes = 0;
    if (plan.copied_save_bytes == 0) continue;
    plan.parts.push_back({"checkpoint on its way", plan.copied_save_bytes, true, Span::kRun,
                          str("a copy of masters and moments, ", CheckpointPart::copied_bytes(1, compute), " B each")});
  }
}

}  // namespace

int64_t MemoryPlan::device_bytes() const { return most_at_a_time(*this, false); }

int64_t MemoryPlan::host_bytes() const { return most_at_a_time(*this, true); }

std::vector<MemoryPlan> plan_stages(const Blueprint& blueprint, const Recipe& recipe, const MeshShape& mesh,
                                    const Machine& machine, const StepRows& rows) {
  MT_CHECK(blueprint.router.experts % mesh.ep == 0, blueprint.router.experts, " experts on ", mesh.ep, " ranks");
  require_trained_parts(recipe, blueprint);
  const PipelinePlan pipeline = plan_pipeline(blueprint, recipe, mesh);
  std::vector<MemoryPlan> plans;
  for (int64_t stage = 0; stage < mesh.pp; ++stage) {
    plans.push_back(plan_stage(blueprint, recipe, mesh, machine, rows, pipeline, stage));
  }
  add_copied_saves(plans, recipe, machine);
  return plans;
}

const MemoryPlan& fullest(const std::vector<MemoryPlan>& stages) {
  return *std::max_element(stages.begin(), stages.end(), [](const MemoryPlan& a, const MemoryPlan& b) {
    return a.device != at::kCPU ? a.device_bytes() < b.device_bytes() : a.host_bytes() < b.host_bytes();
  });
}

MemoryPlan plan_memory(const Blueprint& blueprint, const Recipe& recipe, const MeshShape& mesh, const Machine& machine,
                       const StepRows& rows) {
  return fullest(plan_stages(blueprint, recipe, mesh, machine, rows));
}

std::string memory_table(const MemoryPlan& plan, bool with_formulas) {
  std::ostringstream out;
  auto line = [&](const std::string& name, int64_t bytes, const std::string& remark) {
    out << "  " << std::left << std::setw(26) << name << std::right << std::setw(10) << bytes_text(bytes);
    const size_t end = remark.find_last_not_of(' ');
    if (end != std::string::npos) out << "   " << remark.substr(0, end + 1);
    out << "\n";
  };
  const bool gpu = plan.device != at::kCPU;
  for (const bool on_host : {false, true}) {
    for (const Span span : {Span::kRun, Span::kPhase}) {
      for (const MemoryPart& part : plan.parts) {
        if (part.on_host != on_host || part.span != span) continue;
        const std::string mark = span == Span::kPhase ? "(a) " : gpu && on_host ? "(host) " : "";
        line(part.name, part.bytes, mark + (with_formulas ? part.formula : ""));
      }
    }
  }
  const std::string note = str("T = ", plan.held_rows, " rows; of (a) only the largest counts");
  if (gpu) line("device, at the most", plan.device_bytes(), note);
  line("host, at the most", plan.host_bytes(), gpu ? "" : note);
  std::string text = out.str();
  text.pop_back();
  return text;
}

}  // namespace moetune
