#include "trainer/assemble.h"

#include <ATen/Context.h>
#include <ATen/Parallel.h>

#include <chrono>
#include <cstdlib>

#include "lora/adapters/peft_files.h"
#include "moe/disk_layout.h"
#include "moe/families/family.h"
#include "parallel/base/clock.h"
#include "parallel/base/error.h"
#include "parallel/base/log.h"
#include "parallel/base/name_summary.h"
#include "parallel/base/units.h"
#include "parallel/comm/gathered_text.h"
#include "parallel/device/device_memory.h"
#include "parallel/device/host_memory.h"
#include "trainer/plan/planned_step.h"

namespace moetune {
namespace {

void choose_device_and_threads(const Recipe& recipe, Launch& launch) {
  const bool cuda = device_type(recipe) == at::kCUDA;
  launch.use_device(cuda ? "cuda" : "cpu");
  // More threads than CPUs only wait for each other.
  at::set_num_threads(recipe.run.threads > 0 ? static_cast<int>(recipe.run.threads) : launch.num_cpus());
  // cuDNN is the one fused attention with different widths of keys and values (192 and 128 in DeepSeek-V3).
  if (cuda) {
    at::globalContext().setSDPPriorityOrder(
        {static_cast<int64_t>(at::SDPBackend::cudnn_attention), static_cast<int64_t>(at::SDPBackend::flash_attention),
         static_cast<int64_t>(at::SDPBackend::efficient_attention), static_cast<int64_t>(at::SDPBackend::math)});
  }
}

/// Every operation takes an implementation that gives the same bits each time, or throws.
void choose_determinism(const Recipe& recipe) {
  if (!recipe.deterministic || device_type(recipe) != at::kCUDA) return;
  // cuBLAS reads this when its first handle is made; anything else lets it choose among workspaces as it goes.
  setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8", /*overwrite=*/1);
  at::Context& context = at::globalContext();
  context.setDeterministicCuDNN(true);
  context.setDeterministicAlgorithms(true, /*warn_only=*/false);
  context.setDeterministicFillUninitializedMemory(false);  // a debugging aid: fills every new tensor
}

std::string rate_text(int64_t bytes, double seconds) {
  return str(bytes_text(static_cast<int64_t>(static_cast<double>(bytes) / std::max(1e-9, seconds))), "/s");
}

/// Where the weights came from, in one line.
std::string load_text(const WeightLoad& load, bool random) {
  const int64_t bytes = load.read_bytes + load.cached_bytes;
  std::string text =
      str("weights: ",
          load.cached_bytes > 0 ? str(bytes_text(load.cached_bytes), " packed from the cache, the rest: ") : "",
          random ? "drawn from the seed" : str(bytes_text(load.read_bytes), " of the checkpoint"));
  if (bytes > 0) text += str(", on the rank that reads most, ", rate_text(bytes, load.seconds));
  if (load.written_bytes > 0) text += str("; ", bytes_text(load.written_bytes), " packed into the cache");
  return str(text, ", in ", duration_text(load.seconds));
}

/// Names what lies in the checkpoint and is not read, in a few lines.
void log_unused(const WeightSource& source, const Blueprint& blueprint, bool with_mtp) {
  constexpr size_t kLines = 6;
  const std::vector<std::string> unused = unused_tensors(source, blueprint, with_mtp);
  if (unused.empty()) return;
  const std::vector<std::string> lines = summarise_names(unused);
  std::string text;
  for (size_t i = 0; i < std::min(lines.size(), kLines); ++i) text += "\n  " + lines[i];
  if (lines.size() > kLines) text += str("\n  and ", lines.size() - kLines, " patterns more");
  log_info(str("weights: ", unused.size(), " tensors of the checkpoint are not used:", text));
}

/// Says how far loading is, on rank 0, at most every two seconds.
class LoadProgress {
 public:
  LoadProgress(const WeightSource& source, const SlabCache* cache, const Stage& stage, const Blueprint& blueprint,
               bool with_mtp)
      : source_(source),
        cache_(cache),
        first_layer_(stage.first_block().number()),
        num_layers_(static_cast<int64_t>(stage.blocks(blueprint, with_mtp).size())) {}
  void operator()(LayerId layer) {
    const double seconds = elapsed_s();
    if (seconds < printed_s_ + 2.0) return;
    printed_s_ = seconds;
    const int64_t done = layer.number() - first_layer_ + 1;
    const double left = seconds / static_cast<double>(done) * static_cast<double>(num_layers_ - done);
    const int64_t bytes = source_.bytes_read() + (cache_ != nullptr ? cache_->found_bytes() : 0);
    log_info(str("  layer ", done, "/", num_layers_, ", ", bytes_text(bytes), " read on this rank, ",
                 rate_text(bytes, seconds), ", ", duration_text(left), " left"));
  }
  double elapsed_s() const { return seconds_since(start_); }

 private:
  const WeightSource& source_;
  const SlabCache* cache_;
  int64_t first_layer_, num_layers_;
  std::chrono::steady_clock::time_point start_ = std::chrono::steady_clock::now();
  double printed_s_ = 0.0;
};

/// The system kills what takes too much of it, long after the start and without a word. What is free now says little:
/// some machines give memory as it is asked for.
void warn_of_host_memory(const std::vector<MemoryPlan>& stages, const Machine& machine) {
  int64_t most = 0;
  for (const MemoryPlan& stage : stages) most = std::max(most, stage.host_bytes());
  if (machine.host_memory_bytes == 0 || most <= machine.host_memory_bytes) return;
  log_warn(str("the run needs ", bytes_text(most), " of host memory for each rank as planned, and a host has ",
               bytes_text(machine.host_memory_bytes),
               " for each of its ranks: the system may end it. `moetune plan` says what takes it and which changes "
               "would make it fit"));
}

void make_plans(const Recipe& recipe, Assembly& run) {
  run.stage_plans = plan_stages(run.blueprint, recipe, run.mesh->shape(), run.machine, run.rows);
  run.plan = run.stage_plans.at(run.mesh->here().pp);
}

/// Makes the parts in the order in which they need each other.
class Assembler {
 public:
  Assembler(const Recipe& recipe, const Blueprint& blueprint, Launch& launch, bool speaks,
            const AssemblyOptions& options = {})
      : recipe_(recipe), blueprint_(blueprint), launch_(launch), speaks_(speaks), options_(options) {}

  Assembly assemble(std::unique_ptr<Mesh> mesh, const StepRows& rows) {
    Assembly run;
    run.blueprint = blueprint_;
    require_correction_bias(recipe_, run.blueprint);
    require_router_gradient(recipe_, run.blueprint);
    run.device = launch_.device();
    run.compute = scalar_type(recipe_.model.compute);
    run.slice_tokens = recipe_.train.slice_tokens.value_or(automatic_slice_tokens(run.device));
    const MeshShape shape = mesh->shape();
    run.mesh = std::move(mesh);
    run.exchange = shape.ep == 1 ? make_local_exchange()
                                 : make_token_exchange(run.mesh->ep(), recipe_.exchange.buffer_rows.value_or(0));
    run.targets = std::make_unique<AdapterTargets>(adapter_targets(recipe_));
    run.store = std::make_unique<WeightStore>(run.device);
    // The smallest of the GPUs and the fullest of the hosts decide for all: ranks that share weights place them alike.
    run.machine = {.device = run.device.type(),
                   .device_memory_bytes = -launch_.max_over_world(-device_memory_bytes(run.device.type())),
                   .ranks_per_host = launch_.max_over_world(launch_.local_size()),
                   .host_memory_bytes = -launch_.max_over_world(-host_memory_bytes() / launch_.local_size())};
    run.rows = rows;
    make_plans(recipe_, run);
    if (speaks_) warn_of_host_memory(run.stage_plans, run.machine);
    run.groups = run.plan.pipeline.groups;
    run.links = std::make_unique<StageLinks>(launch_, *run.mesh);
    const TrainedParts trained = trained_parts(recipe_);
    run.shards = std::make_unique<ShardGroups>(launch_, *run.mesh, recipe_.mesh.shard, /*uncut=*/!trained.none());
    run.trained =
        std::make_unique<TrainedSlabs>(*run.mesh, *run.shards, *run.store, slab_tier(recipe_.offload.trained));
    const bool random = recipe_.model.weights == WeightOrigin::kRandom;
    auto source = random ? make_random_weights(run.blueprint, static_cast<uint64_t>(recipe_.run.seed), run.device)
                         : in_disk_layout(open_pretrained(recipe_.model.path), run.blueprint);
    require_tied_head(*source, run.blueprint);
    if (speaks_) log_unused(*source, run.blueprint, recipe_.mtp.trains());
    run.cache = open_weight_cache(recipe_, run.blueprint, *source);
    run.slabs =
        std::make_unique<FrozenSlabs>(*run.store, slab_placement(run.plan.weights, *run.shards), run.cache.get());

    ModelOptions options;
    options.device = run.device;
    options.compute = run.compute;
    options.gradients = gradient_dtype(recipe_);
    options.base = recipe_.model.base;
    options.trained = trained;
    options.targets = recipe_.adapter ? run.targets.get() : nullptr;
    options.router_adapter = router_adapter(recipe_);
    const int64_t local_experts = run.blueprint.router.experts / shape.ep;
    options.placement = {run.mesh->here().ep * local_experts, local_experts, run.blueprint.router.experts};
    options.exchange = run.exchange.get();
    options.slabs = run.slabs.get();
    options.axis = TensorAxis(run.mesh->tp());
    options.expert_axis = expert_axis(*run.mesh);
    options.stage = run.plan.pipeline.stages.at(run.plan.stage);
    options.seed = static_cast<uint64_t>(recipe_.run.seed);
    options.with_mtp = recipe_.mtp.trains();
    options.head_chunk_rows = options_.head_chunk_rows;
    options.expert_chunk_bytes = options_.expert_chunk_bytes;
    LoadProgress progress(*source, run.cache.get(), *options.stage, run.blueprint, options.with_mtp);
    options.loaded = [&](LayerId layer, ParameterSet& parameters) {
      run.trained->take(parameters.of_layer(layer));
      if (speaks_ && layer.is_block()) progress(layer);
    };
    {
      const ThriftyHeap heap;
      run.model = build_model(run.blueprint, *source, options);
    }
    run.load = most_of_any_rank({source->bytes_read(), run.cache ? run.cache->found_bytes() : 0,
                                 run.cache ? run.cache->written_bytes() : 0, progress.elapsed_s()});
    if (!run.model->open_stacks.empty()) run.source = std::move(source);
    if (run.cache) say_complaints(*run.cache, run.mesh->world());
    if (speaks_) log_info(load_text(run.load, random));

    run.sweep_options.kept = run.plan.kept;
    run.sweep_options.stash_inputs = recipe_.offload.activations == OffloadTier::kHost;
    run.sweep_options.mtp_weight = recipe_.mtp.loss_weight;
    run.sweep_options.balance = balance_spec(recipe_, run.blueprint);
    run.sweep_options.poison_released = options_.poison_released;
    run.sweep_options.pipeline = run.plan.pipeline.place(run.plan.stage);
    run.sweep_options.links = run.links.get();
    run.sweep_options.trained = run.trained.get();
    run.sweep_options.lowest_trained = lowest_trained(run.blueprint, recipe_);
    return run;
  }

 private:
  WeightLoad most_of_any_rank(const WeightLoad& own) {
    WeightLoad most;
    most.read_bytes = launch_.max_over_world(own.read_bytes);
    most.cached_bytes = launch_.max_over_world(own.cached_bytes);
    most.written_bytes = launch_.max_over_world(own.written_bytes);
    most.seconds = 1e-3 * static_cast<double>(launch_.max_over_world(static_cast<int64_t>(1e3 * own.seconds)));
    return most;
  }

  const Recipe& recipe_;
  const Blueprint& blueprint_;
  Launch& launch_;
  bool speaks_;
  AssemblyOptions options_;
};

}  // namespace

SlabPlacement slab_placement(const WeightPlacement& weights, const ShardGroups& shards) {
  SlabPlacement placement;
  placement.dense_replicas = shards.dense();
  placement.expert_replicas = shards.experts();
  placement.first_dense_copy = shards.first_dense_copy();
  placement.first_expert_copy = shards.first_expert_copy();
  placement.host_layers = weights.host_layers;
  placement.dense_on_host = weights.dense_on_host;
  return placement;
}

TensorAxis expert_axis(Mesh& mesh) { return mesh.shape().expert_tp > 1 ? TensorAxis(mesh.tp()) : TensorAxis(); }

void withhold(int64_t bytes, const Recipe& recipe, Assembly& run) {
  run.machine.withheld_bytes = bytes;
  make_plans(recipe, run);
}

void choose_experts(Assembly& run, const ExpertsOfLayers& experts) {
  run.model->choose_experts(
      experts, [&](LayerId layer, ParameterSet& parameters) { run.trained->take(parameters.of_layer(layer)); });
  run.source.reset();
}

void load_adapter_from(const Recipe& recipe, Assembly& run) {
  if (!recipe.adapter || !recipe.adapter->from) return;
  const AdapterRecipe& adapter = *recipe.adapter;
  std::vector<std::string> left =
      load_peft_adapter_part(*adapter.from, run.model->parameters, adapter.alpha, adapter.rslora);
  Communicator& pp = run.mesh->pp();
  if (pp.size() > 1) {
    std::string own;
    for (const std::string& name : left) own += name + "\n";
    // What no stage has taken is in the list of each.
    for (const std::string& text : gathered_text(pp, own)) {
      std::erase_if(
          left, [&](const std::string& name) { return ("\n" + text).find("\n" + name + "\n") == std::string::npos; });
    }
  }
  require_taken(*adapter.from, left);
}

void set_up_process(const Recipe& recipe, Launch& launch) {
  choose_device_and_threads(recipe, launch);
  choose_determinism(recipe);
}

Assembly assemble(const Recipe& recipe, Launch& launch, const StepRows& rows, const AssemblyOptions& options) {
  set_up_process(recipe, launch);
  const Blueprint blueprint = load_blueprint(recipe.model.path);
  auto mesh = std::make_unique<Mesh>(launch, mesh_shape(recipe, blueprint, launch.world_size()));
  return Assembler(recipe, blueprint, launch, /*speaks=*/true, options).assemble(std::move(mesh), rows);
}

Assembly assemble_on(std::unique_ptr<Mesh> mesh, const Recipe& recipe, const Blueprint& blueprint, Launch& launch) {
  return Assembler(recipe, blueprint, launch, /*speaks=*/false).assemble(std::move(mesh), {});
}

}  // namespace moetune
