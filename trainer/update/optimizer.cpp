#include "trainer/update/optimizer.h"

#include <ATen/Parallel.h>

#include <algorithm>
#include <chrono>
#include <utility>

#include "lora/adapters/counter_random.h"
#include "parallel/base/clock.h"
#include "parallel/base/error.h"
#include "trainer/update/stochastic_rounding.h"
#include "trainer/update/trained_slabs.h"

namespace moetune {
namespace {

/// Adds the seconds of a scope to a sum.
class Timer {
 public:
  explicit Timer(double& sum_s) : sum_s_(sum_s) {}
  ~Timer() { sum_s_ += seconds_since(start_); }

 private:
  double& sum_s_;
  std::chrono::steady_clock::time_point start_ = std::chrono::steady_clock::now();
};

/// Of the worker: where a GPU computes the cores are idle; on a CPU the way down needs them, and one more thread does
/// little harm.
int worker_threads(at::Device device) { return device.is_cuda() ? std::max(1, at::get_num_threads() - 1) : 1; }

/// This rank's shard of the masters, which are gone from where they were.
void take_masters(const FlatGroup& group, const at::Tensor& shard) {
  if (TrainedSlab* slab = group.slab()) {
    shard.copy_(slab->master());
    slab->release_master();
    return;
  }
  group.cut_masters(shard);
}

}  // namespace

Optimizer::Optimizer(const Partition& partition, const OptimizerOptions& options)
    : partition_(partition),
      options_(options),
      pending_(partition.groups().size()),
      worker_(worker_threads(partition.device())) {
  at::NoGradGuard no_grad;
  const at::ScalarType wide = partition.wide_dtype(), compute = partition.compute_dtype();
  // Masters first: what held them is free before the rest is there.
  const std::vector<at::Tensor> masters = partition.host_shards(wide);
  for (size_t i = 0; i < masters.size(); ++i) take_masters(partition.groups()[i], masters[i]);
  const std::vector<at::Tensor> first = partition.host_shards(wide), second = partition.host_shards(wide),
                                working = compute == wide ? masters : partition.host_shards(compute);
  for (size_t i = 0; i < masters.size(); ++i) shards_.push_back({masters[i], first[i], second[i], working[i]});
}

int64_t Optimizer::host_bytes(int64_t shard_numbers, at::ScalarType compute) {
  const at::ScalarType wide = accumulate_dtype(compute);
  return shard_numbers *
         static_cast<int64_t>(4 * c10::elementSize(wide) + (compute == wide ? 0 : c10::elementSize(compute)));
}

void Optimizer::step(double lr, double gradient_factor, const std::vector<at::Tensor>& gradients) {
  MT_CHECK(gradients.size() == shards_.size(), gradients.size(), " gradients for ", shards_.size(), " groups");
  {
    Timer timer(exposed_s_);
    ++steps_taken_;
    for (size_t i = 0; i < shards_.size(); ++i) {
      MT_CHECK(!pending_[i], "step ", steps_taken_, ": the working copies of ", partition_.groups()[i].layer(),
               " still wait for the step before");
      pending_[i] = worker_.post([this, i, lr, gradient_factor, step = steps_taken_, gradient = gradients[i]] {
        if (gradient_factor != 1.0) gradient.mul_(gradient_factor);
        update(i, lr, step, gradient);
      });
    }
  }
  if (!options_.overlap) flush();
}

void Optimizer::update(size_t index, double lr, int64_t step, const at::Tensor& gradient) {
  Shard& shard = shards_[index];
  for (const FlatGroup::Run& run : partition_.groups()[index].own_runs()) {
    auto part = [&](const at::Tensor& whole) { return whole.narrow(0, run.in_shard, run.count); };
    at::_fused_adamw_({part(shard.master)}, {part(gradient)}, {part(shard.first_moment)}, {part(shard.second_moment)},
                      {}, {at::full({}, static_cast<double>(step), at::kFloat)},
                      run.rule.is_b ? lr * options_.lr_b_ratio : lr, options_.betas[0], options_.betas[1],
                      run.rule.decays ? options_.weight_decay : 0.0, options_.eps, /*amsgrad=*/false,
                      /*maximize=*/false);
  }
  round(index, step);
}

void Optimizer::round(size_t index, int64_t step) {
  Shard& shard = shards_[index];
  if (shard.working.is_same(shard.master)) return;
  const FlatGroup& group = partition_.groups()[index];
  // Untouched, weights are what was read: most of them bf16 already.
  if (!options_.rounding_seed || group.slab() == nullptr || step == 0) {
    shard.working.copy_(shard.master);
    return;
  }
  const ParameterInfo& first = group.members().front().parameter->info();
  const uint64_t key = stream_key(stream_key(*options_.rounding_seed, "rounding of " + first.name), step);
  round_stochastically(shard.master, shard.working, stream_key(key, first.first_expert + first.part.first),
                       group.shard_begin());
}

void Optimizer::refresh(size_t index) {
  at::NoGradGuard no_grad;
  const FlatGroup& group = partition_.groups()[index];
  if (TrainedSlab* slab = group.slab()) {
    slab->publish(shards_[index].working);
    return;
  }
  const at::Tensor flat = group.gathered(shards_[index].working);
  for (const FlatGroup::Member& member : group.members()) {
    member.parameter->working.copy_(FlatGroup::view(flat, member));
  }
}

void Optimizer::finish(size_t index) {
  if (!pending_[index]) return;
  worker_.wait(*pending_[index]);
  pending_[index].reset();
  refresh(index);
}

void Optimizer::before_layer(LayerId layer) {
  Timer timer(exposed_s_);
  for (const size_t i : partition_.of_layer(layer)) finish(i);
}

void Optimizer::before_slab(const TrainedSlab& slab) {
  Timer timer(exposed_s_);
  if (!slab.publishes_alone()) return;
  for (const size_t i : partition_.of_layer(slab.group().layer())) {
    if (partition_.groups()[i].slab() == &slab) finish(i);
  }
}

void Optimizer::before_pass() {
  Timer timer(exposed_s_);
  for (size_t i = 0; i < shards_.size(); ++i) {
    const TrainedSlab* slab = partition_.groups()[i].slab();
    if (slab != nullptr && !slab->is_resident() && !slab->publishes_alone()) finish(i);
  }
}

void Optimizer::flush() {
  for (const FlatGroup& group : partition_.groups()) before_layer(group.layer());
}

void Optimizer::publish() {
  at::NoGradGuard no_grad;
  for (size_t i = 0; i < shards_.size(); ++i) {
    MT_CHECK(!pending_[i], "an update is pending");
    round(i, steps_taken_);
    refresh(i);
  }
}

double Optimizer::take_exposed_s() { return std::exchange(exposed_s_, 0.0); }

}  // namespace moetune
