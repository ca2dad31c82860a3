// Runs steps of a model that a JSON file describes and writes logits, losses, gradients and adapters to a safetensors
// file, for the comparisons in this folder. Alone, or under mpirun with the mesh of the file.
//
//   moetune_parity CONFIG.json
#include <ATen/Parallel.h>
#include <fstream>

#include <iostream>

#include <nlohmann/json.hpp>

#include "lora/adapters/peft_files.h"
#include "moe/disk_layout.h"
#include "moe/families/family.h"
#include "parallel/base/error.h"
#include "parallel/base/files.h"
#include "parallel/bytes/tensor_io.h"
#include "parallel/bytes/weight_store.h"
#include "parallel/comm/launch.h"
#include "parallel/comm/mesh.h"
#include "parallel/comm/shard_groups.h"
#include "trainer/assemble.h"
#include "trainer/state/frozen_digest.h"
#include "trainer/update/gradients.h"
#include "trainer/update/optimizer.h"
#include "trainer/verify/whole_tensors.h"

using namespace moetune;
using nlohmann::json;

namespace {

struct Output {
  std::vector<std::pair<std::string, at::Tensor>> tensors;
  void add(const std::string& name, const at::Tensor& tensor) {
    tensors.emplace_back(name, tensor.detach().cpu().clone(at::MemoryFormat::Contiguous));
  }
};

/// Adds all parameters, put together from the ranks' shards, under their Hugging Face names: a stack expert by expert.
void add_parameters(Output& output, const std::string& prefix, const Partition& partition,
                    const std::vector<at::Tensor>& shards, Mesh& mesh) {
  for (const auto& [name, tensor] : whole_tensors(partition, shards, mesh)) {
    if (name.find('*') == std::string::npos) output.add(prefix + name, tensor);
    else {
      for (int64_t e = 0; e < tensor.size(0); ++e) output.add(prefix + expert_name(name, e), tensor[e]);
    }
  }
}

int run(const std::string& path, Launch& launch) {
  const json config = json::parse(read_text_file(path));
  launch.use_device(config.value("device", "cpu"));
  at::set_num_threads(1);
  const json mesh_json = config.value("mesh", json::object());
  Mesh mesh(launch, resolve_mesh({1, mesh_json.value("dp", int64_t{0}), mesh_json.value("ep", int64_t{1}),
                                  mesh_json.value("tp", int64_t{1}), config.value("expert_tp", int64_t{1})},
                                 launch.world_size()));

  const std::string folder = config.at("model");
  const Blueprint blueprint = load_blueprint(folder);
  auto exchange = mesh.ep().size() == 1 ? make_local_exchange()
                                        : make_token_exchange(mesh.ep(), config.value("buffer_rows", int64_t{0}));
  ModelOptions options;
  options.device = launch.device();
  const std::string compute = config.value("compute", "fp32");
  options.compute = compute == "fp64" ? at::kDouble : compute == "bf16" ? at::kBFloat16 : at::kFloat;
  const std::string base = config.value("base", "fp32");
  options.base = base == "nf4"          ? BaseFormat::kNf4
                 : base == "nf4_double" ? BaseFormat::kNf4Double
                 : base == "bf16"       ? BaseFormat::kBf16
                                        : BaseFormat::kFp32;
  options.seed = 17;
  options.head_chunk_rows = config.value("head_chunk_rows", int64_t{7});
  const int64_t local_experts = blueprint.router.experts / mesh.ep().size();
  options.placement = {mesh.here().ep * local_experts, local_experts, blueprint.router.experts};
  options.exchange = exchange.get();
  options.axis = TensorAxis(mesh.tp());
  options.expert_axis = expert_axis(mesh);
  options.with_mtp = config.value("mtp_loss_weight", 0.0) > 0.0;
  WeightStore store(launch.device());
  const ShardGroups shards(launch, mesh, config.value("shard", "none") == "all" ? ShardScope::kAll : ShardScope::kNone);
  WeightPlacement weights;
  weights.dense_on_host = config.value("offload", "none") == "all";
  if (weights.dense_on_host) weights.host_layers = blueprint.blocks(/*with_mtp=*/true);
  FrozenSlabs slabs(store, slab_placement(weights, shards));
  options.slabs = &slabs;
  // Two experts at a time, so that the chunks of experts are walked too.
  options.expert_chunk_bytes =
      2 * 3 * blueprint.width * blueprint.experts.width * static_cast<int64_t>(c10::elementSize(options.compute));
  const json adapter = config.value("adapter", json());
  options.train_weights = adapter.is_null();
  AdapterTargets targets;
  if (!adapter.is_null()) {
    AdapterTargets::Options wanted;
    wanted.targets = adapter.at("targets").get<std::vector<std::string>>();
    wanted.rank = adapter.at("rank");
    wanted.alpha = adapter.at("alpha");
    wanted.rslora = adapter.value("rslora", false);
    wanted.dropout = adapter.value("dropout", 0.0);
    targets = AdapterTargets(wanted);
    options.targets = &targets;
    const std::string router = config.value("router_train", "none");
    options.train_router = router == "full";
    if (router == "lora") {
      options.router_adapter =
          AdapterSpec{wanted.rank, adapter_scale(wanted.alpha, wanted.rank, wanted.rslora), wanted.dropout};
    }
  }
  auto source = in_disk_layout(open_pretrained(folder), blueprint);
  auto model = build_model(blueprint, *source, options);
  if (!adapter.is_null() && !adapter.value("from", json()).is_null()) {
    load_peft_adapter(adapter.at("from").get<std::string>(), model->parameters, adapter.at("alpha"),
                      adapter.value("rslora", false));
  }

  std::vector<int32_t> tokens, labels;
  std::vector<int64_t> offsets{0};
  for (const json& document : config.at("documents")) {
    for (int32_t id : document.at("input_ids")) tokens.push_back(id);
    for (int32_t id : document.at("labels")) labels.push_back(id);
    offsets.push_back(static_cast<int64_t>(tokens.size()));
  }
  Documents documents(path, blueprint.vocab, tokens, labels, offsets, {});
  BatchOptions batch_options;
  batch_options.batch = config.at("batch");
  batch_options.max_tokens = config.at("max_tokens");
  batch_options.shuffle = false;
  Batches batches(documents, batch_options);

  SweepOptions sweep_options;
  const json keep = config.value("keep", json("none"));
  sweep_options.keep_layers = keep == "all"    ? static_cast<int64_t>(model->blocks.size())
                              : keep == "none" ? 0
                                               : keep.get<int64_t>();
  sweep_options.mtp_weight = config.value("mtp_loss_weight", 0.0);
  sweep_options.balance = {BalanceKind::kSequence, config.value("balance_loss", 0.0)};
  const std::string balance = config.value("balance", "sequence");
  for (const BalanceKind kind : {BalanceKind::kSwitch, BalanceKind::kPooled, BalanceKind::kDeepseekV2}) {
    if (to_string(kind) == balance) sweep_options.balance.kind = kind;
  }
  sweep_options.poison_released = true;
  sweep_options.stash_inputs = config.value("stash", false);
  OptimizerOptions optimizer_options;
  optimizer_options.lr_b_ratio = config.value("lr_b_ratio", 1.0);
  optimizer_options.eps = config.value("eps", optimizer_options.eps);
  optimizer_options.weight_decay = config.value("weight_decay", 0.0);
  const Partition partition(model->parameters, mesh);
  GradientReducer reducer(partition, mesh);
  Optimizer optimizer(partition, optimizer_options);
  Sweep sweep(*model, sweep_options,
              {.before = [&](LayerId layer) { optimizer.before_layer(layer); },
               .done = [&](LayerId layer) { reducer.reduce(layer); },
               .sum_over_documents = [&](const at::Tensor& sum) { mesh.data().all_reduce_sum(sum); }});
  const std::string digest = frozen_digest(*model, mesh);

  Output output;
  const bool invariants = config.value("invariants", false);
  if (invariants) {
    output.add("frozen_digest", at::tensor(std::vector<int64_t>(digest.begin(), digest.end()), at::kLong));
  }
  const int64_t steps = config.value("steps", int64_t{1});
  const double clip = config.value("clip", 0.0);
  const bool diagnostics = config.value("diagnostics", false);
  std::vector<double> losses, norms;
  // Logits, loss and gradients are those before any step, also when no step is taken.
  for (int64_t step = 0; step < std::max<int64_t>(1, steps); ++step) {
    const RankBatch local =
        batches.local(config.value("same_batch", true) ? 0 : step, mesh.data().rank(), mesh.data().size());
    const StepBatch batch = make_step_batch(local, *model, config.value("slice_tokens", int64_t{1} << 40),
                                            launch.device(), options.compute);
    if (step == 0) {
      // Rows of this rank at their place in the global batch, summed over the ranks.
      at::Tensor logits = at::zeros({local.global.tokens, blueprint.vocab},
                                    at::TensorOptions(accumulate_dtype(options.compute)).device(launch.device()));
      logits.index_copy_(0, at::tensor(local.global_tokens, at::kLong).to(launch.device()),
                         sweep.logits(batch).to(logits.scalar_type()));
      mesh.data().all_reduce_sum(logits);
      output.add("logits", logits);
    }
    const StepRandom random{17, step, config.value("dropout_on", true)};
    SweepResult result = sweep.train(batch, random);
    const double norm = reducer.global_norm(step);
    auto mean = [&](at::Tensor sum, double count) {
      at::Tensor total = sum.reshape({1}).to(at::kDouble);
      mesh.data().all_reduce_sum(total);
      return total.item<double>() / count;
    };
    const double loss = mean(result.loss_sum, local.global.divisor());
    at::Tensor load = result.load_LE.defined() ? result.load_LE : at::zeros({0, blueprint.router.experts}, at::kLong);
    mesh.data().all_reduce_sum(load);
    if (step == 0) {
      output.add("loss", at::tensor({loss}, at::kDouble));
      if (result.mtp_loss_sum.defined()) {
        output.add("mtp_loss", at::tensor({mean(result.mtp_loss_sum, local.global.mtp_divisor())}, at::kDouble));
      }
      if (result.balance_loss.defined()) {
        output.add("balance_loss", at::tensor({mean(result.balance_loss, 1.0)}, at::kDouble));
      }
      if (diagnostics || invariants) output.add("load", load);
      add_parameters(output, "grad/", partition, reducer.gradients(), mesh);
    }
    if (steps == 0) break;
    losses.push_back(loss);
    norms.push_back(norm);
    optimizer.step(config.value("lr", 0.0), clip > 0.0 && norm > clip ? clip / (norm + 1e-6) : 1.0,
                   reducer.gradients());
    if (config.value("router_bias", "frozen") == "update") {
      int64_t row = 0;
      for (Block& block : model->blocks) {
        if (block.is_moe()) block.router()->update_bias(load[row++], config.at("bias_rate"));
      }
    }
  }
  if (steps > 0) {
    output.add("losses", at::tensor(losses, at::kDouble));
    optimizer.flush();
    std::vector<at::Tensor> masters;
    for (const Optimizer::Shard& shard : optimizer.shards()) masters.push_back(shard.master);
    add_parameters(output, options.train_weights ? "weight/" : "adapter/", partition, masters, mesh);
  }
  for (size_t block = 0; block < model->blocks.size(); ++block) {
    if (model->blocks[block].has_correction_bias())
      output.add(str("router_bias/", block), model->blocks[block].router()->bias());
  }
  if (diagnostics || invariants) output.add("grad_norms", at::tensor(norms, at::kDouble));
  if (diagnostics) {
    output.add("dequantised_elements", at::tensor({sweep.dequantised().elements}, at::kLong));
  }
  MT_CHECK(frozen_digest(*model, mesh) == digest, "a frozen weight changed");
  if (launch.rank() == 0) write_tensors(config.at("out"), output.tensors, {{"frozen_digest", digest}});
  return 0;
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 2) {
    std::cerr << "usage: moetune_parity CONFIG.json\n";
    return 2;
  }
  Launch launch;
  return run_guarded(launch, [&] { return run(argv[1], launch); });
}
