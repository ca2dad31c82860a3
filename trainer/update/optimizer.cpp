#include "trainer/update/optimizer.h"

#include <ATen/Parallel.h>

#include <algorithm>
#include <chrono>
#include <utility>

#include "parallel/base/clock.h"
#include "parallel/base/error.h"

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

}  // namespace

Optimizer::Optimizer(const Partition& partition, const OptimizerOptions& options)
    : partition_(partition),
      options_(options),
      pending_(partition.groups().size()),
      worker_(worker_threads(partition.device())) {
  at::NoGradGuard no_grad;
  const at::ScalarType wide = partition.wide_dtype(), compute = partition.compute_dtype();
  const std::vector<at::Tensor> masters = partition.host_shards(wide), first = partition.host_shards(wide),
                                second = partition.host_shards(wide);
  const std::vector<at::Tensor> working = compute == wide ? masters : partition.host_shards(compute);
  for (size_t i = 0; i < masters.size(); ++i) {
    const FlatGroup& group = partition.groups()[i];
    for (const FlatGroup::Piece& piece : group.own_pieces()) {
      masters[i]
          .narrow(0, piece.in_shard, piece.count)
          .copy_(piece.parameter->master().flatten().narrow(0, piece.first, piece.count));
    }
    for (const FlatGroup::Member& member : group.members()) member.parameter->release_master();
    shards_.push_back({masters[i], first[i], second[i], working[i]});
  }
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
  if (!shard.working.is_same(shard.master)) shard.working.copy_(shard.master);
}

void Optimizer::refresh(size_t index) {
  at::NoGradGuard no_grad;
  const FlatGroup& group = partition_.groups()[index];
  const at::Tensor flat = group.gathered(shards_[index].working);
  for (const FlatGroup::Member& member : group.members()) {
    member.parameter->working.copy_(FlatGroup::view(flat, member));
  }
}

void Optimizer::before_layer(LayerId layer) {
  Timer timer(exposed_s_);
  for (const size_t i : partition_.of_layer(layer)) {
    if (!pending_[i]) continue;
    worker_.wait(*pending_[i]);
    pending_[i].reset();
    refresh(i);
  }
}

void Optimizer::flush() {
  for (const FlatGroup& group : partition_.groups()) before_layer(group.layer());
}

void Optimizer::publish() {
  at::NoGradGuard no_grad;
  for (size_t i = 0; i < shards_.size(); ++i) {
    MT_CHECK(!pending_[i], "an update is pending");
    if (!shards_[i].working.is_same(shards_[i].master)) shards_[i].working.copy_(shards_[i].master);
    refresh(i);
  }
}

double Optimizer::take_exposed_s() { return std::exchange(exposed_s_, 0.0); }

}  // namespace moetune
