#include "trainer/run/stepper.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <optional>

#include "parallel/base/clock.h"
#include "parallel/base/error.h"
#include "parallel/base/log.h"
#include "parallel/base/units.h"
#include "parallel/device/device_memory.h"
#include "parallel/device/trace_range.h"
#include "trainer/data/step_batch.h"
#include "trainer/plan/memory_plan.h"
#include "trainer/state/frozen_digest.h"
#include "trainer/state/replica_check.h"
#include "trainer/update/schedule.h"

namespace moetune {
namespace {

OptimizerOptions optimizer_options(const Recipe& recipe) {
  const OptimizerRecipe& optimizer = recipe.train.optimizer;
  OptimizerOptions options{optimizer.lr_b_ratio, optimizer.betas, optimizer.eps, optimizer.weight_decay};
  options.tier = slab_tier(recipe.offload.optimizer);
  options.gradients = tier_of_gradients(recipe.offload);
  if (optimizer.rounding == Rounding::kStochastic) options.rounding_seed = static_cast<uint64_t>(recipe.run.seed);
  return options;
}

}  // namespace

Stepper::Stepper(const Recipe& recipe, Assembly& run, RankProgress* progress)
    : recipe_(recipe),
      run_(run),
      progress_(progress),
      partition_(run.model->parameters, *run.mesh, run.trained->groups()),
      reducer_(partition_, *run.mesh, tier_of_gradients(recipe.offload)),
      optimizer_(partition_, optimizer_options(recipe)),
      sweep_(*run.model, run.sweep_options, layer_hooks(), progress) {
  run.trained->before_fetch([this](const TrainedSlab& slab) { optimizer_.before_slab(slab); });
}

Stepper::~Stepper() { run_.trained->before_fetch({}); }

LayerHooks Stepper::layer_hooks() {
  LayerHooks hooks;
  hooks.before = [this](LayerId layer) { optimizer_.before_layer(layer); };
  hooks.done = [this](LayerId layer) {
    const RankProgress::Place at(progress_, str("gradients of ", layer));
    reducer_.reduce(layer);
  };
  hooks.sum_over_documents = [this](const at::Tensor& sum) { run_.mesh->data().all_reduce_sum(sum); };
  hooks.sum_over_stages = [this](const at::Tensor& sum) { run_.mesh->pp().all_reduce_sum(sum); };
  return hooks;
}

std::vector<StepBatch> Stepper::groups_of(Batches& batches, int64_t step) {
  return own_groups(run_, own_part(run_, batches, step));
}

StepReport Stepper::train(Batches& batches, int64_t step, int64_t num_steps) {
  const auto start = std::chrono::steady_clock::now();
  const std::vector<StepBatch> groups = groups_of(batches, step);
  const BatchTotals& totals = groups.front().global;
  const StepRandom random{static_cast<uint64_t>(recipe_.run.seed), step, true};
  optimizer_.before_pass();
  const SweepResult result = sweep_.train(groups, random);
  StepReport report;
  report.step = step + 1;
  {
    const TraceRange range("losses");
    sum_losses(result, totals, report);
  }
  if (!std::isfinite(report.loss)) {
    throw NonFiniteError(str("step ", step + 1, ": the loss is ", report.loss, "; nothing was updated"));
  }
  // The losses have waited for the device: from here on the optimizer alone is waited for.
  const auto summed = std::chrono::steady_clock::now();
  {
    const TraceRange range("norm");
    report.grad_norm = reducer_.global_norm(step + 1);
  }
  report.lr = recipe_.train.optimizer.lr * learning_rate_factor(recipe_.train.schedule, step, num_steps);
  const double clip = recipe_.train.clip;
  const double norm_s = seconds_since(summed);
  compare_replicas(report);
  optimizer_.step(report.lr, clip > 0.0 && report.grad_norm > clip ? clip / (report.grad_norm + 1e-6) : 1.0,
                  reducer_.gradients());
  report.ranks.optimizer_wait_s = norm_s + optimizer_.take_exposed_s();
  if (recipe_.router.bias == RouterBias::kUpdate) update_router_bias(report.load_LE);
  report.tokens = totals.tokens;
  report.target_tokens = totals.targets;
  report.step_s = seconds_since(start);
  return report;
}

void Stepper::rehearse(Batches& batches, int64_t step) {
  const std::vector<StepBatch> groups = groups_of(batches, step);
  const bool yields = recipe_.train.keep.kind == KeepLayers::Kind::kAuto && run_.device.is_cuda();
  if (yields && run_.mesh->world().size() == 1) return keep_until_it_fits(groups);
  if (yields) keep_what_fits(groups);
  pass(groups);
}

void Stepper::pass(const std::vector<StepBatch>& groups) {
  sweep_.train(groups, StepRandom{});
  reducer_.forget();
}

void Stepper::keep_until_it_fits(const std::vector<StepBatch>& groups) {
  const int64_t piece = run_.machine.device_memory_bytes / 16;
  for (int64_t missing = piece;; missing += piece) {
    try {
      return pass(groups);
    } catch (const c10::OutOfMemoryError&) {
      if (sweep_.kept().steps() == 0) throw;
    }
    keep_without(missing, "memory did not suffice for what the plan keeps");
    for (Parameter& parameter : run_.model->parameters.all()) parameter.clear_gradient();
    reducer_.forget();
    free_cached_memory(run_.device);
  }
}

void Stepper::keep_what_fits(const std::vector<StepBatch>& groups) {
  const KeptBlocks planned = sweep_.kept();
  if (max_over_mesh(planned.steps()) == 0) return;
  const int64_t before = peak_memory_bytes(run_.device);
  sweep_.keep({});
  pass(groups);
  sweep_.keep(planned);
  const int64_t peak = peak_memory_bytes(run_.device);
  // What came before may have peaked above it: then it is not known, and taken as planned.
  const int64_t unplanned = peak > before ? std::max<int64_t>(0, peak - run_.plan.unkept_bytes) : 0;
  // The context and NCCL's buffers have half of the reserve.
  const int64_t all = device_memory_bytes(run_.device.type()),
                left = static_cast<int64_t>(kKeepReserve / 2 * static_cast<double>(all)),
                taken = std::max<int64_t>(0, all - available_memory_bytes(run_.device) - left);
  const int64_t missing = max_over_mesh(unplanned + taken);
  if (missing > 0) keep_without(missing, "without it a step took more memory than planned, or less is free");
}

int64_t Stepper::max_over_mesh(int64_t number) {
  at::Tensor most = at::full({1}, number, at::TensorOptions(at::kLong).device(run_.device));
  run_.mesh->world().all_reduce_max(most);
  return most.item<int64_t>();
}

void Stepper::keep_without(int64_t missing, const std::string& why) {
  const KeptBlocks before = sweep_.kept();
  withhold(missing, recipe_, run_);
  sweep_.keep(run_.plan.kept);
  keeps_less_ = true;
  if (sweep_.kept() == before || run_.mesh->stage().rank() != 0) return;
  const std::string stage = run_.mesh->pp().size() > 1 ? str(", stage ", run_.plan.stage) : "";
  log_warn(str("train.keep: auto", stage, ": ", why, ", by up to ", bytes_text(missing), ": instead of ",
               to_string(before), " it keeps ", to_string(sweep_.kept())));
}

Evaluation Stepper::evaluate(Batches& batches, int64_t max_sequences) {
  finish_update();
  return moetune::evaluate(sweep_, run_, batches, max_sequences);
}

void Stepper::finish_update() {
  optimizer_.flush();
  optimizer_.take_exposed_s();
}

void Stepper::sum_losses(const SweepResult& result, const BatchTotals& totals, StepReport& report) {
  auto number = [&](const at::Tensor& value) {
    return value.defined() ? value.to(at::kDouble).reshape({1})
                           : at::zeros({1}, at::TensorOptions(at::kDouble).device(run_.device));
  };
  at::Tensor sums = at::cat({number(result.loss_sum), number(result.mtp_loss_sum), number(result.balance_loss)});
  {
    // Stages end their programs one after the other.
    std::optional<StreamTimer::Piece> waits;
    if (run_.mesh->pp().size() > 1) waits.emplace(run_.links->waits());
    sum_over_mesh(run_, sums);
  }
  if (result.load_LE.defined()) {
    sum_over_mesh(run_, result.load_LE);
    report.load_LE = result.load_LE;
  }
  sums = sums.cpu();
  report.loss = sums[0].item<double>() / totals.divisor();
  if (recipe_.mtp.trains()) {
    report.mtp_loss = totals.mtp_targets > 0 ? sums[1].item<double>() / totals.mtp_divisor() : 0.0;
  }
  if (run_.sweep_options.balance.is_on()) report.balance_loss = sums[2].item<double>();
}

void Stepper::compare_replicas(StepReport& report) {
  const int64_t every = recipe_.run.check_replicas_every;
  if (every == 0 || report.step % every != 0 || run_.mesh->world().size() == 1) return;
  const auto start = std::chrono::steady_clock::now();
  std::vector<HeldDigest> held = trained_digests(*run_.model);
  for (HeldDigest& plain : plain_digests(*run_.model, *run_.mesh)) held.push_back(std::move(plain));
  require_equal_replicas(held, *run_.mesh, str("step ", report.step), "nothing was updated");
  report.replica_check_s = seconds_since(start);
}

void Stepper::update_router_bias(const at::Tensor& load_LE) {
  int64_t row = 0;
  for (const LayerId layer : run_.blueprint.blocks(recipe_.mtp.trains())) {
    if (!run_.blueprint.has_experts(layer)) continue;
    if (run_.model->stage.holds(layer)) {
      run_.model->block(layer).router()->update_bias(load_LE[row], recipe_.router.bias_rate);
    }
    ++row;
  }
}

}  // namespace moetune
