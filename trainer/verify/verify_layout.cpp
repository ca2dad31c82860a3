#include "trainer/verify/verify_layout.h"

#include <cmath>
#include <cstdio>
#include <iostream>
#include <optional>
#include <sstream>

#include "moe/families/family.h"
#include "parallel/base/error.h"
#include "trainer/data/dataset.h"
#include "trainer/run/stepper.h"
#include "trainer/state/frozen_digest.h"
#include "trainer/verify/twin.h"
#include "trainer/verify/whole_tensors.h"

namespace moetune {
namespace {

constexpr double kTolerance = 1e-9;

struct Layout {
  MeshShape mesh{1, 1, 1, 1};
  ShardScope shard = ShardScope::kNone;
  bool streamed = false;
  int64_t buffer_rows = 0;
  int64_t groups = 0;  ///< of documents; 0: auto

  std::string text() const {
    return str(mesh.pp > 1 ? str("pp ", mesh.pp, " x ") : "", "dp ", mesh.dp, " x ep ", mesh.ep, " x tp ", mesh.tp,
               mesh.expert_tp > 1 ? ", experts too" : "", shard == ShardScope::kAll ? ", sharded" : "",
               streamed ? ", from host" : "", buffer_rows > 0 ? str(", rounds of ", buffer_rows) : "",
               groups > 0 ? str(", ", groups, groups == 1 ? " group" : " groups") : "");
  }
};

/// One of each kind of trouble: every axis alone and with each other, shards, streaming, rounds and groups.
const std::vector<Layout>& usual_layouts() {
  constexpr ShardScope kNone = ShardScope::kNone, kAll = ShardScope::kAll;
  static const std::vector<Layout> kLayouts = {
      {{1, 1, 1, 1}, kNone, true, 0},
      {{1, 2, 1, 1}, kAll, false, 0},
      {{1, 1, 2, 1}, kNone, false, 5},
      {{1, 1, 1, 2}, kNone, true, 0},
      {{1, 2, 1, 1}, kAll, true, 0},
      {{1, 1, 1, 2}, kAll, false, 0},
      {{1, 4, 1, 1}, kAll, false, 0},
      {{1, 1, 4, 1}, kNone, false, 0},
      {{1, 1, 1, 4}, kAll, true, 0},
      {{1, 2, 2, 1}, kAll, false, 7},
      {{1, 2, 1, 2}, kAll, true, 0},
      {{1, 1, 2, 2}, kNone, false, 5},
      {{1, 2, 2, 2}, kAll, false, 0},
      {{1, 1, 8, 1}, kAll, false, 0},
      {{1, 1, 4, 2}, kNone, true, 9},
      {{1, 4, 2, 1}, kAll, true, 0},
      {{1, 2, 1, 4}, kAll, false, 0},
      {{1, 1, 1, 2, 2}, kNone, false, 0},
      {{1, 1, 2, 2, 2}, kNone, false, 5},
      {{1, 1, 1, 4, 4}, kNone, true, 0},
      {{1, 2, 2, 2, 2}, kAll, false, 0},
      // Pipelines: with one group, several, more than there are documents; beside every other axis.
      {{2, 1, 1, 1}, kNone, false, 0, 3},
      {{2, 1, 1, 1}, kNone, true, 0, 1},
      {{2, 2, 1, 1}, kAll, false, 0, 2},
      {{2, 1, 2, 1}, kNone, false, 5, 2},
      {{2, 1, 1, 2}, kNone, false, 0, 4},
      {{3, 1, 1, 1}, kNone, false, 0, 40},
      {{4, 1, 1, 1}, kNone, true, 0, 6},
      {{4, 2, 1, 1}, kAll, true, 0, 3},
      {{2, 1, 2, 2}, kAll, false, 0, 3},
      {{2, 2, 2, 1}, kAll, true, 7, 0},
      {{4, 1, 2, 1}, kNone, false, 0, 2},
      {{4, 1, 1, 2}, kNone, false, 0, 5},
      {{2, 1, 1, 2, 2}, kNone, false, 0, 2},
  };
  return kLayouts;
}

void require_sound_experts(const MeshShape& mesh, const std::string& place) {
  if (mesh.expert_tp == 1 || mesh.expert_tp == mesh.tp) return;
  throw UserError(str(place, ": expert_tp is ", mesh.expert_tp, "; allowed is 1, or tp, which is ", mesh.tp));
}

Layout parse_layout(const std::string& text) {
  Layout layout;
  std::istringstream items(text);
  for (std::string item; std::getline(items, item, ',');) {
    const size_t equals = item.find('=');
    const std::string key = item.substr(0, equals), value = equals == std::string::npos ? "" : item.substr(equals + 1);
    const bool is_number =
        !value.empty() && value.size() < 9 && value.find_first_not_of("0123456789") == std::string::npos;
    int64_t* number = key == "pp"            ? &layout.mesh.pp
                      : key == "pp_groups"   ? &layout.groups
                      : key == "dp"          ? &layout.mesh.dp
                      : key == "ep"          ? &layout.mesh.ep
                      : key == "tp"          ? &layout.mesh.tp
                      : key == "expert_tp"   ? &layout.mesh.expert_tp
                      : key == "buffer_rows" ? &layout.buffer_rows
                                             : nullptr;
    const bool on = value == "all";
    if (number != nullptr && is_number) *number = std::stoll(value);
    else if (key == "shard" && (on || value == "none")) layout.shard = on ? ShardScope::kAll : ShardScope::kNone;
    else if (key == "offload" && (on || value == "none")) layout.streamed = on;
    else {
      throw UserError(
          str("--layout ", text, ": '", item,
              "' is not understood; allowed: pp=N, pp_groups=N, dp=N, ep=N, tp=N, expert_tp=N, buffer_rows=N, "
              "shard=none|all, offload=none|all, joined by commas"));
    }
  }
  require_sound_experts(layout.mesh, "--layout " + text);
  return layout;
}

std::vector<Layout> layouts(const Recipe& recipe, const std::vector<std::string>& asked, int64_t world_size) {
  std::vector<Layout> chosen;
  for (const std::string& text : asked) {
    chosen.push_back(parse_layout(text));
    if (chosen.back().mesh.num_ranks() > world_size) {
      throw UserError(str("--layout ", text, ": ", chosen.back().mesh.num_ranks(), " ranks; the job has ", world_size,
                          ", start more with mpirun -np"));
    }
  }
  if (!asked.empty()) return chosen;
  const MeshShape own{recipe.mesh.pp, recipe.mesh.dp.value_or(1), recipe.mesh.ep, recipe.mesh.tp,
                      recipe.mesh.expert_tp};
  require_sound_experts(own, recipe.origin("mesh.expert_tp") + ": mesh");
  if (own.num_ranks() > 1 && own.num_ranks() <= world_size) chosen.push_back({own, recipe.mesh.shard, false, 0, 0});
  for (const Layout& layout : usual_layouts()) {
    if (layout.mesh.num_ranks() <= world_size) chosen.push_back(layout);
  }
  return chosen;
}

/// What a twin's run leaves, whole, on every rank of its mesh.
struct Outcome {
  std::vector<double> losses;
  std::map<std::string, at::Tensor> gradients, trained;
  std::vector<at::Tensor> biases;
  std::string digest;
};

/// Of all stages, in the order of the layers.
std::vector<at::Tensor> correction_biases(Assembly& run) {
  std::vector<at::Tensor> biases;
  if (!run.blueprint.router.correction_bias) return biases;
  for (const LayerId layer : run.blueprint.blocks(run.sweep_options.pipeline.mtp)) {
    if (!run.blueprint.has_experts(layer)) continue;
    at::Tensor bias =
        at::zeros({run.blueprint.router.experts}, at::TensorOptions(accumulate_dtype(run.compute)).device(run.device));
    if (run.model->stage.holds(layer)) bias.copy_(run.model->block(layer).router()->bias());
    run.mesh->pp().all_reduce_sum(bias);
    biases.push_back(bias.cpu());
  }
  return biases;
}

Outcome run_twin(const Twin& twin, const Layout& layout, Launch& launch) {
  Recipe recipe = twin.recipe;
  recipe.mesh = {};
  recipe.mesh.pp = layout.mesh.pp;
  if (layout.groups > 0) recipe.mesh.pp_groups = layout.groups;
  recipe.mesh.dp = layout.mesh.dp;
  recipe.mesh.ep = layout.mesh.ep;
  recipe.mesh.tp = layout.mesh.tp;
  recipe.mesh.expert_tp = layout.mesh.expert_tp;
  recipe.mesh.shard = layout.shard;
  if (layout.streamed) recipe.offload = {{OffloadFrozen::Kind::kAll, 0}, OffloadTier::kHost, OffloadTier::kHost};
  // Either way in turn, for the proof of both.
  if (layout.shard != ShardScope::kNone) recipe.offload.gradients = OffloadTier::kNone;
  if (layout.buffer_rows > 0) recipe.exchange.buffer_rows = layout.buffer_rows;
  Assembly run = assemble_on(std::make_unique<Mesh>(launch, layout.mesh), recipe, twin.blueprint, launch);
  Stepper stepper(recipe, run, nullptr);
  Batches batches(twin.documents, batch_options(recipe));
  Outcome outcome;
  for (int64_t step = 0; step < twin.steps; ++step) {
    outcome.losses.push_back(stepper.train(batches, step, twin.steps).loss);
  }
  stepper.optimizer().flush();
  outcome.gradients = whole_tensors(stepper.partition(), stepper.gradients(), *run.mesh);
  std::vector<at::Tensor> masters;
  for (const Optimizer::Shard& shard : stepper.optimizer().shards()) masters.push_back(shard.master);
  outcome.trained = whole_tensors(stepper.partition(), masters, *run.mesh);
  outcome.biases = correction_biases(run);
  outcome.digest = frozen_digest(*run.model, *run.mesh);
  return outcome;
}

/// ||a - b|| / ||b||; 0 where both are zero.
double distance(const at::Tensor& a, const at::Tensor& b) {
  const double difference = (a - b).norm().item<double>(), size = b.norm().item<double>();
  return difference == 0.0 ? 0.0 : difference / size;
}

struct Worst {
  double distance = 0.0;
  std::string name;
};

Worst worst(const std::map<std::string, at::Tensor>& a, const std::map<std::string, at::Tensor>& b) {
  Worst found;
  for (const auto& [name, tensor] : b) {
    const double far = distance(a.at(name), tensor);
    if (!(far <= found.distance)) found = {far, name};  // a NaN is the farthest
  }
  return found;
}

}  // namespace

int verify_layout(const Recipe& recipe, const std::vector<std::string>& asked, Launch& launch) {
  set_up_process(recipe, launch);
  const Twin twin = make_twin(recipe, load_blueprint(recipe.model.path));
  const bool speaks = launch.rank() == 0;
  const std::vector<Layout> chosen = layouts(recipe, asked, launch.world_size());
  const Outcome expected = run_twin(twin, Layout(), launch);
  if (speaks) {
    std::printf("a tiny twin of the run: %ld trained tensors, %ld steps in fp64, on one rank loss %.6f -> %.6f\n\n",
                static_cast<long>(expected.trained.size()), static_cast<long>(twin.steps), expected.losses.front(),
                expected.losses.back());
    std::printf("%-62s %5s  %-8s %-9s %-8s %-8s %s\n", "largest relative difference from one rank", "ranks", "losses",
                "gradients", "trained", "biases", "frozen weights");
  }
  int64_t failed = 0;
  for (const Layout& layout : chosen) {
    const Outcome outcome = run_twin(twin, layout, launch);
    double losses = 0.0, biases = 0.0;
    for (size_t i = 0; i < expected.losses.size(); ++i) {
      losses = std::max(losses, std::abs(outcome.losses[i] - expected.losses[i]) / std::abs(expected.losses[i]));
    }
    for (size_t i = 0; i < expected.biases.size(); ++i) {
      biases = std::max(biases, distance(outcome.biases[i], expected.biases[i]));
    }
    const Worst gradients = worst(outcome.gradients, expected.gradients),
                trained = worst(outcome.trained, expected.trained);
    const bool same_frozen = outcome.digest == expected.digest;
    const bool agrees = losses <= kTolerance && gradients.distance <= kTolerance && trained.distance <= kTolerance &&
                        biases <= kTolerance && same_frozen;
    failed += !agrees;
    if (!speaks) continue;
    std::printf("%-62s %5ld  %-8.1e %-9.1e %-8.1e %-8.1e %s%s\n", layout.text().c_str(),
                static_cast<long>(layout.mesh.num_ranks()), losses, gradients.distance, trained.distance, biases,
                same_frozen ? "same" : "DIFFER", agrees ? "" : "   <- WRONG");
    if (!agrees && !(gradients.distance <= kTolerance)) {
      std::printf("    farthest gradient: %s\n", gradients.name.c_str());
    }
    if (!agrees && !(trained.distance <= kTolerance)) {
      std::printf("    farthest trained tensor: %s\n", trained.name.c_str());
    }
    std::fflush(stdout);
  }
  if (speaks && failed == 0) {
    std::printf("\n%ld of %ld layouts compute what one rank computes (to %.0e)\n", static_cast<long>(chosen.size()),
                static_cast<long>(chosen.size()), kTolerance);
  }
  if (speaks && failed > 0) {
    std::printf(
        "\n%ld of %ld layouts compute something else: a defect of moetune; nothing trained on them can be relied on\n",
        static_cast<long>(failed), static_cast<long>(chosen.size()));
  }
  return failed == 0 ? 0 : static_cast<int>(ExitCode::kDefect);
}

}  // namespace moetune
