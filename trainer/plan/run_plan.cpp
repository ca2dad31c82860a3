#include "trainer/plan/run_plan.h"

#include <algorithm>
#include <cmath>

#include "moe/inventory.h"
#include "parallel/base/ceil_div.h"
#include "parallel/base/error.h"
#include "parallel/base/units.h"
#include "trainer/recipe/recipe_meaning.h"

namespace moetune {
namespace {

// What is on a device beside what the program's allocator hands out, assumed and not measured part by part
// (docs/planner.md): CUDA's context with the kernels of torch, cuBLAS and cuDNN; NCCL's buffers for each group of
// ranks.
constexpr int64_t kContextBytes = int64_t{900} << 20;
constexpr int64_t kNcclBytesOfGroup = int64_t{160} << 20;
/// Pieces between the allocator's blocks that no tensor fits into, a share of what it hands out in a step.
constexpr double kFragments = 0.01;
/// A process on the host with LibTorch, before it holds anything of the model; with CUDA's libraries beside it.
constexpr int64_t kProcessBytes = int64_t{450} << 20, kProcessBytesWithCuda = int64_t{3} << 30;
// Launch, groups of ranks, kernels' first calls.
constexpr double kStartSeconds = 30.0, kStartSecondsOfCpu = 2.0;

/// Of the busiest rank of an expert axis over their mean, where no run has said it: text, without a balance loss.
constexpr double kUsualSkew = 1.1;
constexpr double kHighSkew = 1.3;
constexpr double kNever = 1e18;  // in seconds, or epochs

/// Bytes of the checkpoint that the model is read from.
double checkpoint_bytes(const Blueprint& blueprint) {
  const auto all = static_cast<double>(count_parameters(blueprint));
  constexpr double kBf16 = 2.0, kFp8 = 1.0 + 4.0 / (128.0 * 128.0), kMxfp4 = 0.5 + 1.0 / 32.0;
  if (blueprint.fp8_blocks) return all * kFp8;
  if (!blueprint.mxfp4_experts) return all * kBf16;
  double stacked = 0.0;
  for (const LinearMap& map : linear_maps(blueprint, /*with_mtp=*/false)) {
    if (map.stack > 0) stacked += static_cast<double>(map.stack * map.outputs * map.inputs);
  }
  return stacked * kMxfp4 + (all - stacked) * kBf16;
}

/// Of the experts of the model, the share that one host holds.
double share_of_host(const MeshShape& mesh, int64_t ranks_per_host) {
  const double stages =
      std::min(static_cast<double>(mesh.pp),
               std::ceil(static_cast<double>(ranks_per_host) / static_cast<double>(mesh.dp * mesh.ep * mesh.tp)));
  return std::min(1.0, static_cast<double>(ranks_per_host) / static_cast<double>(mesh.ep * mesh.tp)) * stages /
         static_cast<double>(mesh.pp);
}

class Planned {
 public:
  explicit Planned(const PlanRequest& request) : request_(request), plan_{.request = request} {
    const Recipe& recipe = request.recipe;
    plan_.mesh = mesh_shape(recipe, request.blueprint, request.gpus);
    data_ranks_ = plan_.mesh.dp * plan_.mesh.ep;
    packed_ = request.data.packed(recipe.data.max_tokens, recipe.data.packing);
    require_attended(packed_.longest);
    sequences_ = ceil_div(recipe.train.batch, data_ranks_);
  }

  RunPlan memory() {
    add_memory(nullptr);
    return std::move(plan_);
  }
  double tokens_per_s(const std::vector<MemoryPlan>& stages) {
    plan_.stages = stages;
    return tokens_a_step() / time_of(Outlook::kExpected).seconds;
  }
  RunPlan all(const std::vector<MemoryPlan>* known = nullptr) {
    add_memory(known);
    add_time();
    add_run();
    return std::move(plan_);
  }

 private:
  /// As training does of its documents.
  void require_attended(int64_t longest) const {
    const Blueprint& model = request_.blueprint;
    const int64_t most = model.longest_document;
    if (most <= 0 || longest <= most) return;
    throw UserError(str("a document of ", longest, " tokens: ", model.model_type, " attends to ", most,
                        " at the most; lower data.max_tokens or --tokens-per-document"));
  }

  void add(const std::string& name, int64_t bytes, bool on_host, const std::string& phase, const std::string& formula) {
    if (bytes > 0) plan_.parts.push_back({name, bytes, on_host, phase, formula});
  }

  /// `known`: the plan of the program's own memory, where it is there.
  void add_memory(const std::vector<MemoryPlan>* known) {
    const MachineProfile& machine = request_.machine;
    const Recipe& recipe = request_.recipe;
    const int64_t per_host = std::min(request_.gpus, machine.ranks_per_host);
    // The fullest step is planned for, which training tries first.
    const int64_t usual = static_cast<int64_t>(std::ceil(1.05 * packed_.tokens_a_sequence)) * sequences_;
    const int64_t rows = std::min(sequences_ * recipe.data.max_tokens,
                                  std::max(usual, packed_.fullest_rank(recipe.train.batch, data_ranks_)));
    plan_.stages = known != nullptr ? *known
                                    : plan_stages(request_.blueprint, recipe, plan_.mesh,
                                                  {machine.device, machine.memory_bytes, per_host, host_limit_bytes()},
                                                  {.step = std::max<int64_t>(1, rows)});
    plan_.memory = fullest(plan_.stages);
    for (const MemoryPart& part : plan_.memory.parts) {
      add(part.name, part.bytes, part.on_host, part.span == MemoryPart::Span::kRun ? "run" : "step", part.formula);
    }
    const bool gpu = machine.on_gpu();
    if (gpu) {
      add("CUDA context and kernels", kContextBytes, false, "run", "CUDA, torch, cuBLAS, cuDNN");
      if (request_.gpus > 1) {
        add("NCCL", groups() * kNcclBytesOfGroup, false, "run", str(groups(), " groups of ranks"));
      }
      add("allocator's fragments", static_cast<int64_t>(kFragments * static_cast<double>(plan_.memory.device_bytes())),
          false, "run", str(100.0 * kFragments, " % of what it hands out"));
    }
    add("process", gpu ? kProcessBytesWithCuda : kProcessBytes, true, "run", "LibTorch and the program");
    add_loading(gpu);
    add_saving();
    plan_.device_bytes = peak(/*on_host=*/false);
    plan_.host_bytes = peak(/*on_host=*/true) + host_bytes_of_others();
    plan_.device_limit_bytes = gpu ? machine.memory_bytes : 0;
    plan_.host_limit_bytes = host_limit_bytes();
  }

  /// Of each rank.
  int64_t host_limit_bytes() const {
    return request_.host_memory_bytes > 0 ? request_.host_memory_bytes : request_.machine.host_memory_bytes;
  }

  /// Groups of more than one rank that the mesh makes.
  int64_t groups() const {
    const MeshShape& mesh = plan_.mesh;
    // Of a pipeline: its ranks, its ends, and a stage's links down and up with both neighbours.
    const int64_t pipeline = mesh.pp == 1 ? 0 : mesh.pp == 2 ? 4 : 6;
    int64_t sharing = 0;  // one of each kind of weights that ranks share
    if (request_.recipe.mesh.shard != ShardScope::kNone) {
      sharing = (data_ranks_ > 1) + (mesh.dp * (mesh.expert_tp > 1 ? 1 : mesh.tp) > 1);
      if (!trained_parts(request_.recipe).none()) sharing += (mesh.tp > 1) + (mesh.expert_tp > 1);
    }
    return 1 + sharing + (mesh.ep > 1) + (mesh.tp > 1) + (mesh.dp > 1) + (mesh.ep > 1 && mesh.dp > 1) +
           (data_ranks_ > 1) + pipeline;
  }

  /// A map is read, made dense in fp32 and packed, one after the other.
  void add_loading(bool gpu) {
    int64_t largest = 0;
    for (const LinearMap& map : linear_maps(request_.blueprint, request_.recipe.mtp.trains())) {
      largest = std::max(largest, map.outputs * map.inputs);
    }
    constexpr int64_t kBytes = 4 + 2;
    add("map on its way in", largest * kBytes, !gpu, "load", "the largest, as read and in fp32");
    if (gpu) add("map on its way in", largest * kBytes, true, "load", "the largest, as read and in fp32");
  }

  /// A tensor is written at a time, from where the optimizer holds it.
  void add_saving() {
    if (plan_.memory.saves_beside) return;  // from a copy, which is in the memory plan
    int64_t largest = 0;
    for (const TrainedLayer& layer : plan_.memory.trained_layers) largest = std::max(largest, layer.shard_numbers);
    constexpr int64_t kBytes = 4;
    add("layer on its way out", largest * kBytes, true, "save", "of masters or moments, in fp32");
  }

  /// What a stage that is not the fullest on the device holds more of the host.
  int64_t host_bytes_of_others() const {
    int64_t most = 0;
    for (const MemoryPlan& stage : plan_.stages) most = std::max(most, stage.host_bytes());
    return most - plan_.memory.host_bytes();
  }

  int64_t peak(bool on_host) const {
    int64_t always = 0, load = 0, save = 0, step = 0;
    for (const PlannedBytes& part : plan_.parts) {
      if (part.on_host != on_host) continue;
      if (part.phase == "run") always += part.bytes;
      if (part.phase == "load") load += part.bytes;
      if (part.phase == "save") save += part.bytes;
      if (part.phase == "step") step = std::max(step, part.bytes);
    }
    return always + std::max({load, save, step});
  }

  StepTime time_of(Outlook outlook) const {
    const KernelRates rates(request_.machine, request_.network, plan_.mesh, outlook);
    return step_time(request_.blueprint, request_.recipe, plan_.mesh, plan_.stages, rates, load(outlook));
  }

  StepLoad load(Outlook outlook) const {
    StepLoad load;
    load.rows = packed_.tokens_a_sequence * static_cast<double>(sequences_);
    load.keys = packed_.keys;
    if (plan_.mesh.ep > 1) {
      const double known = request_.expert_skew;
      load.expert_skew = known > 0.0                 ? known
                         : outlook == Outlook::kLow  ? 1.0
                         : outlook == Outlook::kHigh ? kHighSkew
                                                     : kUsualSkew;
    }
    load.computing = request_.machine.computing.value;
    return load;
  }

  void add_time() {
    PlannedTime& time = plan_.time;
    time.low = time_of(Outlook::kLow);
    time.expected = time_of(Outlook::kExpected);
    time.high = time_of(Outlook::kHigh);
    if (plan_.mesh.pp > 1) {
      const KernelRates rates(request_.machine, request_.network, plan_.mesh, Outlook::kExpected);
      time.schedule =
          plan_schedule(request_.blueprint, request_.recipe, plan_.mesh, plan_.stages, rates, load(Outlook::kExpected));
    }
    time.tokens_per_s = tokens_a_step() / time.expected.seconds;
    time.calibrated = request_.machine.measured || request_.corrected;
  }

  double tokens_a_step() const {
    return std::min(static_cast<double>(request_.recipe.train.batch),
                    static_cast<double>(packed_.sequences) * epochs()) *
           packed_.tokens_a_sequence;
  }
  double epochs() const {
    const TrainRecipe& train = request_.recipe.train;
    return train.epochs ? static_cast<double>(*train.epochs) : kNever;
  }

  void add_run() {
    const Recipe& recipe = request_.recipe;
    PlannedRun& run = plan_.run;
    if (recipe.train.steps) {
      run.steps = *recipe.train.steps;
      run.tokens = std::llround(static_cast<double>(run.steps) * tokens_a_step());
    } else {
      run.steps = ceil_div(packed_.sequences * *recipe.train.epochs, recipe.train.batch);
      run.tokens =
          std::llround(static_cast<double>(packed_.sequences) * packed_.tokens_a_sequence) * *recipe.train.epochs;
    }
    const MachineProfile& machine = request_.machine;
    const int64_t per_host = std::min(request_.gpus, machine.ranks_per_host);
    // Each host reads what its ranks hold; behind it the fullest step is tried, where several ranks keep by choice
    // without that too (Stepper::rehearse).
    const bool twice = machine.on_gpu() && request_.gpus > 1 && recipe.train.keep.kind == KeepLayers::Kind::kAuto &&
                       plan_.memory.kept.steps() > 0;
    if (recipe.model.weights == WeightOrigin::kPretrained) {
      run.load_s =
          checkpoint_bytes(request_.blueprint) * share_of_host(plan_.mesh, per_host) / request_.disk.read_bytes_per_s;
    }
    run.load_s +=
        (twice ? 2.0 : 1.0) * plan_.time.expected.seconds + (machine.on_gpu() ? kStartSeconds : kStartSecondsOfCpu);
    run.evaluation_s = evaluations() * evaluation_s();
    // Masters and two moments of a host's ranks.
    double bytes = 0.0;
    for (const TrainedLayer& layer : plan_.memory.trained_layers) {
      bytes += 3.0 * 4.0 * static_cast<double>(layer.shard_numbers);
    }
    run.save_s = exposed_save_s(saves(), bytes * static_cast<double>(per_host));
    const auto hours = [&](const StepTime& step) {
      constexpr double kHour = 3600.0;
      return (run.load_s + run.evaluation_s + run.save_s + static_cast<double>(run.steps) * step.seconds) / kHour;
    };
    run.hours_low = hours(plan_.time.low);
    run.hours = hours(plan_.time.expected);
    run.hours_high = hours(plan_.time.high);
  }

  /// After so many steps, when so much time has passed since the last, and at the end.
  double saves() const {
    const CheckpointRecipe& checkpoint = request_.recipe.checkpoint;
    double saves = 1.0;
    if (checkpoint.every_steps > 0) saves += static_cast<double>((plan_.run.steps - 1) / checkpoint.every_steps);
    // Where steps have it more often the clock never asks.
    const double trained_s = static_cast<double>(plan_.run.steps) * plan_.time.expected.seconds;
    if (between_saves_s() < step_s_between_saves()) saves += std::floor(trained_s / between_saves_s());
    return saves;
  }
  double step_s_between_saves() const {
    const int64_t steps = request_.recipe.checkpoint.every_steps;
    return steps > 0 ? static_cast<double>(steps) * plan_.time.expected.seconds : kNever;
  }
  /// By steps or by the clock, whichever comes first.
  double between_saves_s() const {
    constexpr double kMinute = 60.0;
    const double minutes = request_.recipe.checkpoint.every_minutes;
    return std::min(step_s_between_saves(), minutes > 0.0 ? kMinute * minutes : kNever);
  }

  /// What training stands still for so many saves of so many bytes of a host. Written beside training, all but the last
  /// cost the copying, and what writing takes longer than the steps between two.
  double exposed_save_s(double saves, double bytes) const {
    const double write_s = bytes / request_.disk.write_bytes_per_s;
    if (!plan_.memory.saves_beside) return saves * write_s;
    constexpr double kCopiedBytesPerS = 5e9;  // of a rank
    return write_s + (saves - 1.0) * (static_cast<double>(plan_.memory.copied_save_bytes) / kCopiedBytesPerS +
                                      std::max(0.0, write_s - between_saves_s()));
  }

  double evaluations() const {
    const Recipe& recipe = request_.recipe;
    if (!recipe.data.eval && recipe.data.eval_split <= 0.0) return 0.0;
    const EvalRecipe& eval = recipe.eval;
    return 1.0 + (eval.at_start ? 1.0 : 0.0) +
           (eval.every_steps > 0 ? static_cast<double>((plan_.run.steps - 1) / eval.every_steps) : 0.0);
  }
  double evaluation_s() const {
    const Recipe& recipe = request_.recipe;
    constexpr double kUsualShare = 0.02;  // of the documents, where data.eval is a file that nobody has read
    const double split = recipe.data.eval_split;
    double sequences = static_cast<double>(packed_.sequences) * (split > 0.0 ? split / (1.0 - split) : kUsualShare);
    if (recipe.eval.max_sequences > 0) sequences = std::min(sequences, static_cast<double>(recipe.eval.max_sequences));
    const KernelRates rates(request_.machine, request_.network, plan_.mesh, Outlook::kExpected);
    const double batch = static_cast<double>(recipe.train.batch);
    return std::ceil(std::max(1.0, sequences) / batch) *
           evaluation_seconds(request_.blueprint, recipe, plan_.mesh, plan_.stages, rates, load(Outlook::kExpected));
  }

  const PlanRequest& request_;
  RunPlan plan_;
  int64_t data_ranks_ = 1, sequences_ = 1;  ///< of the fullest rank in a step
  PackedData packed_;
};

/// Whether the run fits once `change` was made; a change that does not go with the mesh does not.
bool fits_with(const PlanRequest& request) {
  try {
    return plan_run_memory(request).fits();
  } catch (const UserError&) {
    return false;
  }
}

}  // namespace

double RunPlan::dollars(double hours) const {
  return request.price ? hours * static_cast<double>(request.gpus) * request.price->dollars_per_gpu_hour : 0.0;
}

double RunPlan::dollars_per_million_tokens(double hours) const {
  constexpr double kMillion = 1e6;
  return run.tokens > 0 ? dollars(hours) * kMillion / static_cast<double>(run.tokens) : 0.0;
}

RunPlan plan_run(const PlanRequest& request) { return Planned(request).all(); }

RunPlan plan_run(const PlanRequest& request, const std::vector<MemoryPlan>& stages) {
  return Planned(request).all(&stages);
}

RunPlan plan_run_memory(const PlanRequest& request) { return Planned(request).memory(); }

double expected_tokens_per_s(const RunPlan& memory) { return Planned(memory.request).tokens_per_s(memory.stages); }

std::vector<std::string> changes_to_fit(const RunPlan& plan, const std::vector<MachineProfile>& others) {
  std::vector<std::string> changes;
  const auto attempt = [&](const std::string& what, const auto& change) {
    PlanRequest request = plan.request;
    change(request);
    if (fits_with(request)) changes.push_back(what);
  };
  const auto value = [&](const std::string& what, const auto& change) {
    attempt(what, [&](PlanRequest& request) { change(request.recipe); });
  };
  const Recipe& recipe = plan.request.recipe;
  if (recipe.train.keep.kind != KeepLayers::Kind::kNone && recipe.train.keep.kind != KeepLayers::Kind::kAuto) {
    value("train.keep=none", [](Recipe& r) { r.train.keep = {KeepLayers::Kind::kNone}; });
  }
  const bool freezes = freezes_maps(recipe, plan.request.blueprint);
  if (freezes && recipe.model.base != BaseFormat::kNf4Double) {
    value("model.base=nf4_double", [](Recipe& r) { r.model.base = BaseFormat::kNf4Double; });
  }
  if (freezes && recipe.offload.frozen.kind == OffloadFrozen::Kind::kNone) {
    value("offload.frozen=auto", [](Recipe& r) { r.offload.frozen = {OffloadFrozen::Kind::kAuto}; });
  }
  if (recipe.mesh.shard != ShardScope::kAll && plan.mesh.dp * plan.mesh.ep * plan.mesh.tp > 1) {
    value("mesh.shard=all", [](Recipe& r) { r.mesh.shard = ShardScope::kAll; });
  }
  if (!trained_parts(recipe).none()) {
    if (recipe.train.gradients != GradientType::kBf16 && recipe.model.compute == ComputeType::kBf16) {
      value("train.gradients=bf16", [](Recipe& r) { r.train.gradients = GradientType::kBf16; });
    }
    if (recipe.offload.trained == OffloadTier::kNone) {
      value("offload.trained=host", [](Recipe& r) { r.offload.trained = OffloadTier::kHost; });
    }
  }
  if (recipe.offload.optimizer == OffloadTier::kNone) {
    value("offload.optimizer=host", [](Recipe& r) { r.offload.optimizer = OffloadTier::kHost; });
  } else if (recipe.offload.gradients == OffloadTier::kNone) {
    value("offload.gradients=host", [](Recipe& r) { r.offload.gradients = OffloadTier::kHost; });
  } else {
    value("offload.gradients=none", [](Recipe& r) { r.offload.gradients = OffloadTier::kNone; });
    value("offload.optimizer=none", [](Recipe& r) { r.offload.optimizer = OffloadTier::kNone; });
  }
  if (recipe.offload.activations == OffloadTier::kNone) {
    value("offload.activations=host", [](Recipe& r) { r.offload.activations = OffloadTier::kHost; });
  }
  for (int64_t batch = recipe.train.batch / 2; batch >= 1; batch /= 2) {
    const size_t before = changes.size();
    value(str("train.batch=", batch), [&](Recipe& r) { r.train.batch = batch; });
    if (changes.size() > before) break;
  }
  for (int64_t tokens = recipe.data.max_tokens / 2; tokens >= 256; tokens /= 2) {
    const size_t before = changes.size();
    value(str("data.max_tokens=", tokens), [&](Recipe& r) { r.data.max_tokens = tokens; });
    if (changes.size() > before) break;
  }
  // More or other GPUs are no change of a recipe that computes on CPUs.
  if (!plan.request.machine.on_gpu()) return changes;
  for (int64_t ep = plan.mesh.ep * 2; ep <= plan.request.gpus; ep *= 2) {
    const size_t before = changes.size();
    value(str("mesh.ep=", ep, " mesh.dp=auto"), [&](Recipe& r) {
      r.mesh.ep = ep;
      r.mesh.dp = std::nullopt;
    });
    if (changes.size() > before) break;
  }
  constexpr int64_t kMostGpus = 4096;
  for (int64_t gpus = plan.request.gpus * 2; gpus <= kMostGpus; gpus *= 2) {
    const size_t before = changes.size();
    attempt(str(gpus, "x", plan.request.machine.name, " mesh.ep=", plan.mesh.ep * gpus / plan.request.gpus),
            [&](PlanRequest& request) {
              request.recipe.mesh.ep = plan.mesh.ep * gpus / plan.request.gpus;
              request.recipe.mesh.dp = std::nullopt;
              request.gpus = gpus;
            });
    if (changes.size() > before) break;
  }
  for (const MachineProfile& other : others) {
    if (other.memory_bytes <= plan.request.machine.memory_bytes) continue;
    attempt(str(plan.request.gpus, "x", other.name), [&](PlanRequest& request) { request.machine = other; });
  }
  if (plan.host_bytes > plan.host_limit_bytes) {
    constexpr int64_t kGb = 1000000000;  // as the option counts
    const int64_t needed_gb = ceil_div(plan.host_bytes, kGb);
    attempt(str("--host-memory ", needed_gb),
            [&](PlanRequest& request) { request.host_memory_bytes = needed_gb * kGb; });
  }
  return changes;
}

}  // namespace moetune
