#include "trainer/plan/step_time.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <map>

#include "moe/block.h"
#include "moe/inventory.h"
#include "moe/model.h"
#include "parallel/base/error.h"
#include "parallel/bytes/fetch_schedule.h"
#include "parallel/bytes/weight_store.h"
#include "trainer/plan/planned_step.h"
#include "trainer/recipe/recipe_meaning.h"

namespace moetune {
namespace {

using Kind = StepOp::Kind;

// Of what a host takes to walk a block down and up where there is nothing to compute, the way down.
constexpr double kShareDown = 0.25;

namespace part {
constexpr const char* kDense = "dense products";
constexpr const char* kGrouped = "grouped products";
constexpr const char* kAttention = "attention";
constexpr const char* kDequantise = "dequantise";
constexpr const char* kRows = "row kernels";
constexpr const char* kImbalance = "imbalance";
constexpr const char* kLaunches = "launches";
constexpr const char* kExchange = "exchange";
constexpr const char* kTensorAxis = "tensor axis";
constexpr const char* kGathers = "gathers of weights";
constexpr const char* kCopies = "host copies of weights";
constexpr const char* kReduction = "gradient reduction";
constexpr const char* kGradients = "gradients to the host";
constexpr const char* kOptimizer = "optimizer";
constexpr const char* kBetween = "between stages";
constexpr const char* kBubble = "bubble";
constexpr std::array kAll{kDense,      kGrouped, kAttention, kDequantise, kRows,      kImbalance, kLaunches, kExchange,
                          kTensorAxis, kGathers, kCopies,    kReduction,  kGradients, kOptimizer, kBetween};
}  // namespace part

/// A lane that does one thing after the other, and what was counted of it.
class Lanes {
 public:
  /// Begins not before `ready`; returns the end.
  double run(Lane lane, const char* what, double seconds, double ready, const std::string& name) {
    if (seconds <= 0.0) return ready;
    double& free = free_[static_cast<size_t>(lane)];
    const double begin = std::max(free, ready);
    free = begin + seconds;
    busy_[what] += seconds;
    span(lane, name, begin, free);
    return free;
  }
  /// The same beside what else the lane does: groups of ranks talk at the same time.
  double beside(Lane lane, const char* what, double seconds, double ready, const std::string& name) {
    if (seconds <= 0.0) return ready;
    busy_[what] += seconds;
    span(lane, name, ready, ready + seconds);
    return ready + seconds;
  }
  /// The computing lane does it now.
  void compute(const char* what, double seconds, const std::string& name) {
    const double begin = now();
    run(Lane::kCompute, what, seconds, begin, name);
    exposed_[what] += now() - begin;
  }
  /// The computing lane stands until `ready`.
  void wait(const char* what, double ready) {
    if (ready <= now()) return;
    exposed_[what] += ready - now();
    free_[static_cast<size_t>(Lane::kCompute)] = ready;
  }
  double now() const { return free_[static_cast<size_t>(Lane::kCompute)]; }
  double free(Lane lane) const { return free_[static_cast<size_t>(lane)]; }

  /// Forgets what was counted, not where the lanes are.
  void begin_counting() {
    busy_.clear();
    exposed_.clear();
    spans_.clear();
    start_ = now();
  }
  StepTime counted() const {
    StepTime time;
    time.seconds = now() - start_;
    for (const char* name : part::kAll) {
      const double busy = of(busy_, name), exposed = of(exposed_, name);
      if (busy > 0.0 || exposed > 0.0) time.parts.push_back({name, busy, exposed});
    }
    time.spans = spans_;
    return time;
  }

 private:
  static double of(const std::map<std::string, double>& sums, const char* name) {
    const auto found = sums.find(name);
    return found == sums.end() ? 0.0 : found->second;
  }
  /// What a lane does for one operation without a pause is one span.
  void span(Lane lane, const std::string& name, double begin, double end) {
    constexpr double kPause = 1e-9;
    if (!spans_.empty() && spans_.back().lane == lane && spans_.back().name == name &&
        begin - start_ - spans_.back().end_s < kPause) {
      spans_.back().end_s = end - start_;
    } else {
      spans_.push_back({lane, name, begin - start_, end - start_});
    }
  }

  std::array<double, 4> free_{};
  std::map<std::string, double> busy_, exposed_;
  std::vector<LaneSpan> spans_;
  double start_ = 0.0;
};

class Simulation {
 public:
  Simulation(const Blueprint& blueprint, const Recipe& recipe, const MeshShape& mesh, const MemoryPlan& memory,
             const KernelRates& rates, const StepLoad& load, bool training)
      : blueprint_(blueprint),
        recipe_(recipe),
        mesh_(mesh),
        memory_(memory),
        rates_(rates),
        load_(load),
        rows_(load.rows / static_cast<double>(mesh.tp * memory.pipeline.groups)),
        slices_(slices(recipe, memory, load.rows / static_cast<double>(memory.pipeline.groups))),
        local_experts_(blueprint.router.experts / mesh.ep),
        parts_{mesh.tp, mesh.expert_tp, recipe.model.base},
        size_(static_cast<double>(c10::elementSize(scalar_type(recipe.model.compute)))),
        training_(training) {
    PassTraits traits = planned_traits(blueprint, recipe, mesh, memory.device);
    const std::vector<std::vector<LinearMap>> blocks = planned_blocks(blueprint, recipe);
    for (const size_t first : first_alike(blueprint, blocks)) {
      if (first < blocks_.size()) {
        blocks_.push_back(blocks_[first]);
        continue;
      }
      traits.keys = load.keys.of(blueprint.layer(blocks[first].front().layer).attention.mask);
      blocks_.push_back(planned_block(blocks[first], block_cost(blueprint, blocks[first], traits)));
      blocks_.back().keys = traits.keys;
    }
  }

  /// Steps follow each other until one takes as long as the one before: the second does, its lanes being warm.
  StepTime run(const StepProgram& program) {
    schedule(program);
    for (const bool counts : {false, true}) {
      if (counts) lanes_.begin_counting();
      begin_round();
      for (const StepOp& op : program) execute(op);
      end_round();
    }
    return lanes_.counted();
  }

 private:
  struct PlannedBlock {
    BlockCost cost;
    double dense_rate = 0.0;  ///< FLOP/s of its maps but for experts
    double grouped_rate = 0.0;
    double dense_numbers = 0.0, expert_numbers = 0.0;  ///< that are made dense in a pass
    double keys = 0.0;                                 ///< that a token sees
  };

  static double slices(const Recipe& recipe, const MemoryPlan& memory, double rows) {
    const int64_t of_one = recipe.train.slice_tokens.value_or(automatic_slice_tokens(at::Device(memory.device)));
    return std::max(1.0, std::ceil(rows / static_cast<double>(std::max(of_one, recipe.data.max_tokens))));
  }

  PlannedBlock planned_block(const std::vector<LinearMap>& maps, const BlockCost& cost) const {
    PlannedBlock block{.cost = cost};
    double flops = 0.0, seconds = 0.0, grouped_flops = 0.0, grouped_seconds = 0.0;
    // Of the rows that ranks of the expert axis send each other each of this rank's experts gets the same.
    const double rows = rows_ * static_cast<double>(mesh_.expert_tp) *
                        static_cast<double>(blueprint_.router.top_k * mesh_.ep) /
                        static_cast<double>(std::max<int64_t>(1, blueprint_.router.experts));
    for (const LinearMap& map : maps) {
      const LinearMap held = map.part(parts_);
      const bool packed = map.is_held_frozen() && is_quantised(held_format(map, recipe_.model.base));
      const auto numbers = static_cast<double>(map.units(local_experts_) * held.outputs * held.inputs);
      if (map.stack > 0) {
        // Gate and up are one product.
        const double work = forward_flops(map);
        const bool is_half = map.role == TensorRole::kGate || map.role == TensorRole::kUp;
        const int64_t outputs = is_half ? 2 * held.outputs : held.outputs;
        grouped_flops += work;
        grouped_seconds += work / rates_.grouped(rows, outputs, held.inputs);
        if (packed) block.expert_numbers += numbers;
      } else {
        const double work = forward_flops(map);
        flops += work;
        seconds += work / rates_.dense(held.outputs, held.inputs);
        if (packed) block.dense_numbers += numbers;
      }
    }
    block.dense_rate = seconds > 0.0 ? flops / seconds : 1.0;
    block.grouped_rate = grouped_seconds > 0.0 ? grouped_flops / grouped_seconds : 1.0;
    return block;
  }

  // Weights: what the store would fetch, and when.

  /// A slab that is fetched for its uses, frozen or trained.
  struct FetchedSlab {
    std::string name;
    LayerId layer;
    int lane = 0;
    double kept_bytes = 0.0;
    bool on_host = false;
    int64_t shards = 1, stride = 1;  ///< ranks that share it, and how far apart they are
  };

  struct FetchLane {
    std::vector<int> uses;  ///< of slabs_
    FetchRound round;
    std::vector<double> ready;  ///< by slab, when it is in its buffer
    size_t next = 0;            ///< use
  };

  std::vector<FetchedSlab> fetched_slabs() const {
    std::vector<FetchedSlab> slabs;
    for (const PlacedSlab& placed : memory_.weights.slabs) {
      if (!placed.is_fetched()) continue;
      // Dense maps lie alike on all ranks that share none of their parts; experts on those of the data axis alone.
      const bool experts = placed.kind == SlabKind::kExperts;
      slabs.push_back({str(experts ? "experts of " : "maps of ", placed.layer), placed.layer, experts ? 1 : 0,
                       static_cast<double>(placed.kept_bytes), placed.on_host, placed.shards,
                       experts ? mesh_.ep * mesh_.tp : mesh_.tp});
    }
    for (const PlacedTrained& placed : memory_.trained.slabs) {
      if (!placed.is_fetched()) continue;
      slabs.push_back({str("weights of ", placed.layer), placed.layer, placed.lane(),
                       static_cast<double>(placed.kept_bytes), placed.on_host, placed.shards,
                       stride_of_shards(mesh_, placed.replicas)});
    }
    return slabs;
  }

  void schedule(const StepProgram& program) {
    slabs_ = fetched_slabs();
    for (FetchLane& lane : fetching_) lane.ready.assign(slabs_.size(), 0.0);
    const auto add = [&](LayerId layer, int lane) {
      for (size_t i = 0; i < slabs_.size(); ++i) {
        if (slabs_[i].layer == layer && slabs_[i].lane == lane) fetching_[lane].uses.push_back(static_cast<int>(i));
      }
    };
    for (const SlabUse& use : slab_uses(blueprint_, program)) add(use.layer, use.kind == SlabKind::kExperts);
    for (const LayerId layer : block_uses(program)) {
      for (int lane = TrainedSlabs::kFirstLane; lane < WeightStore::kLanes; ++lane) add(layer, lane);
    }
    for (int lane = 0; lane < WeightStore::kLanes; ++lane) {
      fetching_[lane].round =
          fetches_of_round(fetching_[lane].uses, lane < TrainedSlabs::kFirstLane ? Rounds::kFollow : Rounds::kAlone);
    }
  }

  void begin_round() {
    for (FetchLane& lane : fetching_) lane.next = 0;
  }
  void end_round() {
    for (FetchLane& lane : fetching_) begin_fetches(lane, lane.uses.size());
    if (!training_) return;
    // Losses and the gradient's norm wait for the device, for the last sums and for their way to the host.
    lanes_.wait(part::kReduction, lanes_.free(Lane::kNetwork));
    lanes_.wait(part::kGradients, gradients_there_);
    double done = lanes_.now();
    updated_.clear();
    for (const TrainedLayer& layer : memory_.trained_layers) {
      const auto numbers = static_cast<double>(layer.shard_numbers);
      const std::string name = str("update ", layer.layer);
      if (recipe_.offload.optimizer == OffloadTier::kNone) {
        // Gradient, master and moments read, all but the first written, and new values.
        const double bytes = 28.0 + size_;
        lanes_.compute(part::kOptimizer,
                       numbers * (rates_.starts_beside() ? bytes / rates_.memory() : 1.0 / rates_.adamw()), name);
        continue;
      }
      done = lanes_.run(Lane::kHost, part::kOptimizer, numbers / rates_.adamw(), done, name);
      updated_[layer.layer] = done;
    }
  }

  void begin_fetches(FetchLane& lane, size_t time) {
    for (const FetchRound::Timed& fetch : lane.round.fetches) {
      if (fetch.time != time) continue;
      const FetchedSlab& slab = slabs_[fetch.slab];
      double ready = lanes_.now();
      if (slab.lane >= TrainedSlabs::kFirstLane && updated_.contains(slab.layer))
        ready = std::max(ready, updated_.at(slab.layer));
      if (slab.on_host) {
        ready = lanes_.run(Lane::kCopy, part::kCopies, slab.kept_bytes / rates_.to_device(), ready, slab.name);
      }
      if (slab.shards > 1) {
        ready = lanes_.run(Lane::kNetwork, part::kGathers,
                           rates_.seconds_to_send(slab.kept_bytes * static_cast<double>(slab.shards - 1),
                                                  rates_.replicas(slab.shards, slab.stride)),
                           ready, slab.name);
      }
      lane.ready[fetch.slab] = ready;
    }
  }

  /// The next use of a lane, if it is one of the layer's.
  void use(int lane_number, LayerId layer) {
    FetchLane& lane = fetching_[lane_number];
    if (lane.next == lane.uses.size() || slabs_[lane.uses[lane.next]].layer != layer) return;
    const int slab = lane.uses[lane.next];
    begin_fetches(lane, lane.next);
    lanes_.wait(slabs_[slab].on_host ? part::kCopies : part::kGathers, lane.ready[slab]);
    ++lane.next;
  }
  void use(SlabKind kind, LayerId layer) { use(kind == SlabKind::kExperts ? 1 : 0, layer); }
  void use_trained(LayerId layer) {
    for (int lane = TrainedSlabs::kFirstLane; lane < WeightStore::kLanes; ++lane) use(lane, layer);
  }

  // Operations.

  void execute(const StepOp& op) {
    const std::string name = to_string(op);
    const auto D = static_cast<double>(blueprint_.width), V = static_cast<double>(blueprint_.vocab);
    const TrainedParts trained = trained_parts(recipe_);
    switch (op.kind) {
      case Kind::kAwait: {
        const auto found = updated_.find(op.layer);
        if (found != updated_.end()) lanes_.wait(part::kOptimizer, found->second);
        break;
      }
      case Kind::kEmbed: lanes_.compute(part::kRows, scaled(rows_ * 2.0 * D * size_ / rates_.memory()), name); break;
      case Kind::kDown: block(op, /*up=*/false, name); break;
      case Kind::kUp: block(op, /*up=*/true, name); break;
      case Kind::kHead: {
        const double ways = training_ ? (trained.has(ModelPart::kHead) ? 6.0 : 4.0) : 2.0;
        dense(rows_ * ways * D * V, rates_.dense(blueprint_.vocab / mesh_.tp, blueprint_.width), name);
        // Logits are written and read, and with their gradient again.
        rows_bytes(rows_ * V * size_ * (training_ ? 4.0 : 2.0), name);
        tensor_axis(static_cast<double>(mesh_.tp - 1) * rows_ * D * size_ * (training_ ? 2.0 : 1.0), head_calls(),
                    name);
        break;
      }
      case Kind::kMtpInput:
        use(SlabKind::kDense, blueprint_.turn());
        dense(rows_ * forward_flops(mtp_projection(blueprint_, trained)),
              rates_.dense(blueprint_.width, 2 * blueprint_.width), name);
        break;
      case Kind::kMtpInputGradient:
        use(SlabKind::kDense, blueprint_.turn());
        dense(rows_ * backward_flops(mtp_projection(blueprint_, trained)),
              rates_.dense(blueprint_.width, 2 * blueprint_.width), name);
        break;
      case Kind::kReduce: reduce(op.layer, name); break;
      case Kind::kSend:
      case Kind::kSendGradient:
        lanes_.beside(Lane::kNetwork, part::kBetween,
                      rates_.seconds_to_send(rows_ * D * size_, rates_.replicas(2, mesh_.dp * mesh_.ep * mesh_.tp)),
                      lanes_.now(), name);
        break;
      case Kind::kTurn:
      case Kind::kLoads:
      case Kind::kReceive:
      case Kind::kReceiveGradient:
      case Kind::kEmbedGradient: break;
    }
  }

  void block(const StepOp& op, bool up, const std::string& name) {
    const PlannedBlock& planned = blocks_.at(op.layer.number());
    const BlockCost& cost = planned.cost;
    Work work;
    if (up) {
      work.add(cost.again_where(op.keep)).add(cost.backward);
    } else {
      work.add(cost.forward);
    }
    const double before = lanes_.now();
    use_trained(op.layer);
    use(SlabKind::kDense, op.layer);
    double idle = lanes_.now() - before;
    lanes_.compute(part::kDequantise, scaled(planned.dense_numbers / rates_.dequantise()), name);
    const AttentionSpec& spec = blueprint_.layer(op.layer).attention;
    const double forward = up ? cost.again_where(op.keep).attention : cost.forward.attention;
    const double backward = up ? cost.backward.attention : 0.0;
    lanes_.compute(part::kAttention,
                   scaled(rows_ * (forward / rates_.attention_forward(spec, 2.0 * planned.keys) +
                                   backward / rates_.attention_backward(spec, 2.0 * planned.keys))),
                   name);
    const int64_t calls = cost.tensor_axis_calls + (up ? cost.calls_again_where(op.keep) : 0);
    tensor_axis(rows_ * work.tensor_axis_bytes, slices_ * static_cast<double>(calls), name);
    // Rows leave before dense maps beside the experts are computed, and their sums come home behind the experts: of
    // what travels, two parts of 2 on the way down, of 3 on the way up, leave; the last comes home.
    const bool twice = up && op.keep < Keep::kExperts;
    const double sent = rows_ * work.exchange_bytes * load_.expert_skew;
    const double home_share = twice ? 1.0 / 3.0 : 0.5;
    // Counts first; rows, weights and choices; on the way up the gradients of sums. Home come sums; rows' gradients and
    // those of weights.
    const double out_calls = up ? (twice ? 4.0 : 1.0) : 4.0, home_calls = up ? 2.0 : 1.0;
    const double arrived =
        lanes_.beside(Lane::kNetwork, part::kExchange, rates_.seconds_to_exchange((1.0 - home_share) * sent, out_calls),
                      lanes_.now(), name);
    dense(rows_ * (work.dense + work.scores), planned.dense_rate, name);
    if (cost.is_moe) {
      lanes_.wait(part::kExchange, arrived);
      const double waited = lanes_.now();
      use(SlabKind::kExperts, op.layer);
      idle += lanes_.now() - waited;
      lanes_.compute(part::kDequantise, scaled(planned.expert_numbers / rates_.dequantise()), name);
      const double grouped = scaled(rows_ * work.grouped / planned.grouped_rate);
      lanes_.compute(part::kGrouped, grouped, name);
      lanes_.compute(part::kImbalance, grouped * (load_.expert_skew - 1.0), name);
    }
    rows_bytes(rows_ * work.touched_bytes, name);
    const double home = lanes_.beside(Lane::kNetwork, part::kExchange,
                                      rates_.seconds_to_exchange(home_share * sent, home_calls), lanes_.now(), name);
    lanes_.wait(part::kExchange, home);
    launches(up ? 1.0 - kShareDown : kShareDown, lanes_.now() - before - idle, name);
  }

  double scaled(double seconds) const { return load_.computing * seconds; }
  void dense(double flops, double rate, const std::string& name) {
    lanes_.compute(part::kDense, scaled(flops / rate), name);
  }
  void rows_bytes(double bytes, const std::string& name) {
    lanes_.compute(part::kRows, scaled(bytes / rates_.memory()), name);
  }
  /// All ranks of the axis wait for each other: nothing of it is hidden.
  void tensor_axis(double bytes, double calls, const std::string& name) {
    lanes_.wait(part::kTensorAxis,
                lanes_.beside(Lane::kNetwork, part::kTensorAxis,
                              rates_.seconds_to_send(bytes, rates_.tensor_axis(), calls), lanes_.now(), name));
  }
  /// Rows are gathered, and their gradients summed; of each chunk of logits the largest, the sum of exponentials and
  /// the target's are, there and back.
  double head_calls() const {
    const double chunks =
        std::ceil(rows_ * static_cast<double>(mesh_.tp) / static_cast<double>(ModelOptions().head_chunk_rows));
    return (training_ ? 2.0 : 1.0) + chunks * 3.0 * 2.0;
  }
  /// The host starts operators beside what the device computes; where it needs longer, that is what is waited for. On a
  /// CPU starting them and computing follow each other.
  void launches(double share, double computing_s, const std::string& name) {
    const double starting = share / rates_.small_blocks();
    lanes_.compute(part::kLaunches, rates_.starts_beside() ? std::max(0.0, starting - computing_s) : starting, name);
  }
  void reduce(LayerId layer, const std::string& name) {
    constexpr double kGradientBytes = 4.0;
    for (const TrainedLayer& trained : memory_.trained_layers) {
      if (trained.layer != layer) continue;
      // Gradients are laid out in one piece; the sums leave for the host beside what is computed next.
      const auto all = static_cast<double>(trained.numbers), own = static_cast<double>(trained.shard_numbers);
      rows_bytes(all * (kGradientBytes + 2.0 * size_), name);
      const auto leave = [&](double ready) {
        if (!rates_.starts_beside() || tier_of_gradients(recipe_.offload) == SlabTier::kDevice) return;
        gradients_there_ = lanes_.beside(Lane::kCopy, part::kGradients, own * kGradientBytes / rates_.from_device(),
                                         std::max(ready, gradients_there_), name);
      };
      if (trained.numbers == trained.shard_numbers) {
        leave(lanes_.now());
        continue;
      }
      // Scattered sums in fp32 now, new values in compute dtype before the next use, but of weights that each use
      // gathers (TrainedPlacement).
      const auto numbers = static_cast<double>(trained.numbers);
      const double away = numbers - static_cast<double>(trained.shard_numbers);
      double gathered = 0.0;
      for (const PlacedTrained& placed : memory_.trained.slabs) {
        if (placed.layer == layer && placed.shards > 1) {
          gathered += static_cast<double>(placed.kept_bytes * (placed.shards - 1)) / size_;
        }
      }
      const double published = std::max(0.0, away - gathered), calls = published > 0.0 ? 2.0 : 1.0;
      leave(lanes_.run(Lane::kNetwork, part::kReduction,
                       rates_.seconds_to_send(away * kGradientBytes + published * size_, rates_.data_axis(), calls),
                       lanes_.now(), name));
    }
  }

  const Blueprint& blueprint_;
  const Recipe& recipe_;
  const MeshShape& mesh_;
  const MemoryPlan& memory_;
  const KernelRates& rates_;
  const StepLoad load_;
  double rows_;    ///< that the rank holds of a group
  double slices_;  ///< that mixing takes them in
  int64_t local_experts_;
  TensorParts parts_;
  double size_;  ///< bytes of a number in compute dtype
  std::vector<PlannedBlock> blocks_;
  std::vector<FetchedSlab> slabs_;
  std::array<FetchLane, WeightStore::kLanes> fetching_;
  std::map<LayerId, double> updated_;  ///< when the last update of a layer is done
  double gradients_there_ = 0.0;       ///< when the last sum that left is on the host
  bool training_;
  Lanes lanes_;
};

}  // namespace

std::string to_string(Lane lane) {
  switch (lane) {
    case Lane::kCompute: return "compute";
    case Lane::kCopy: return "copy";
    case Lane::kNetwork: return "network";
    case Lane::kHost: return "host";
  }
  throw InternalError("a lane of no kind");
}

namespace {

/// What a stage does once a step, whatever the number of groups.
bool is_once_a_step(const std::string& name) {
  return name == part::kOptimizer || name == part::kReduction || name == part::kGradients;
}

double once_s(const StepTime& stage) {
  double seconds = 0.0;
  for (const TimePart& part : stage.parts) seconds += is_once_a_step(part.name) ? part.exposed_s : 0.0;
  return seconds;
}

/// A pipeline goes at the pace of the stage whose turns are longest, and stands once a step for the stage that has most
/// to do then (pipeline_cut.h): (1 + (P - 1) / G) max C + max E.
StepTime of_pipeline(const std::vector<StepTime>& stages, const PipelinePlan& pipeline) {
  if (stages.size() == 1) return stages.front();
  const auto most = [&](auto seconds) {
    return *std::max_element(stages.begin(), stages.end(),
                             [&](const StepTime& a, const StepTime& b) { return seconds(a) < seconds(b); });
  };
  const auto turns_s = [](const StepTime& stage) { return stage.seconds - once_s(stage); };
  StepTime time = most(turns_s);
  const StepTime once = most(once_s);
  const double turns = turns_s(time),
               idle = turns * static_cast<double>(stages.size() - 1) / static_cast<double>(pipeline.groups);
  std::erase_if(time.parts, [](const TimePart& part) { return is_once_a_step(part.name); });
  for (const TimePart& part : once.parts) {
    if (is_once_a_step(part.name)) time.parts.push_back(part);
  }
  time.parts.push_back({part::kBubble, 0.0, idle});
  time.seconds = turns + once_s(once) + idle;
  return time;
}

}  // namespace

StepTime step_time(const Blueprint& blueprint, const Recipe& recipe, const MeshShape& mesh,
                   const std::vector<MemoryPlan>& stages, const KernelRates& rates, const StepLoad& load) {
  const PipelinePlan& pipeline = stages.front().pipeline;
  std::vector<StepTime> times;
  for (const MemoryPlan& memory : stages) {
    times.push_back(
        Simulation(blueprint, recipe, mesh, memory, rates, load, /*training=*/true)
            .run(planned_step(blueprint, recipe, memory.kept, pipeline.place(memory.stage), pipeline.groups)));
  }
  return of_pipeline(times, pipeline);
}

double evaluation_seconds(const Blueprint& blueprint, const Recipe& recipe, const MeshShape& mesh,
                          const std::vector<MemoryPlan>& stages, const KernelRates& rates, const StepLoad& load) {
  const PipelinePlan& pipeline = stages.front().pipeline;
  std::vector<StepTime> times;
  for (const MemoryPlan& memory : stages) {
    times.push_back(Simulation(blueprint, recipe, mesh, memory, rates, load, /*training=*/false)
                        .run(step_program(blueprint, {.mode = StepMode::kEvaluate,
                                                      .pipeline = pipeline.place(memory.stage),
                                                      .groups = pipeline.groups})));
  }
  return of_pipeline(times, pipeline).seconds;
}

}  // namespace moetune
