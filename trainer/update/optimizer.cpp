#include "trainer/update/optimizer.h"

#include <ATen/Parallel.h>

#include <algorithm>
#include <chrono>
#include <functional>
#include <memory>
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

/// Whether new working copies of this rank's shard are written where they lie.
bool has_own_place(const FlatGroup& group) { return group.slab() != nullptr && group.slab()->own().defined(); }

/// What comes to a state in host memory from a GPU, or goes there: gradients, new working copies of slabs.
HostWindow::Traffic traffic(const Partition& partition, const OptimizerOptions& options, bool in) {
  HostWindow::Traffic traffic{in ? partition.wide_dtype() : partition.compute_dtype()};
  if (!partition.device().is_cuda() || options.tier == SlabTier::kDevice) return traffic;
  for (const FlatGroup& group : partition.groups()) {
    const bool passes =
        in ? options.gradients == SlabTier::kDevice : has_own_place(group) && group.slab()->own().is_cuda();
    if (passes) traffic.longest = std::max(traffic.longest, group.shard_size());
  }
  return traffic;
}

}  // namespace

Optimizer::Optimizer(const Partition& partition, const OptimizerOptions& options)
    : partition_(partition),
      options_(options),
      pending_(partition.groups().size()),
      sent_(partition.groups().size()),
      window_(partition.device(), traffic(partition, options, /*in=*/true), traffic(partition, options, /*in=*/false)),
      worker_(worker_threads(partition.device()), partition.device()) {
  at::NoGradGuard no_grad;
  const at::ScalarType wide = partition.wide_dtype(), compute = partition.compute_dtype();
  const std::vector<FlatGroup>& groups = partition.groups();
  // Masters first: what held them is free before the rest is there.
  const std::vector<at::Tensor> masters = partition.shards(wide, options.tier);
  for (size_t i = 0; i < groups.size(); ++i) take_masters(groups[i], masters[i]);
  const std::vector<at::Tensor> first = partition.shards(wide, options.tier),
                                second = partition.shards(wide, options.tier),
                                working = compute == wide
                                              ? masters
                                              : partition.shards(compute, options.tier, std::not_fn(has_own_place));
  for (size_t i = 0; i < groups.size(); ++i) {
    shards_.push_back(
        {masters[i], first[i], second[i], has_own_place(groups[i]) ? groups[i].slab()->own() : working[i]});
    first_piece_.push_back(pieces_.size());
    for (const FlatGroup::Run& run : groups[i].own_runs()) {
      for (int64_t done = 0; done < run.count; done += HostWindow::kNumbers) {
        const int64_t count = std::min(HostWindow::kNumbers, run.count - done);
        pieces_.push_back({i, {run.rule, run.in_shard + done, count}});
      }
    }
  }
  first_piece_.push_back(pieces_.size());
}

int64_t Optimizer::state_bytes(int64_t shard_numbers, at::ScalarType compute) {
  return shard_numbers * static_cast<int64_t>(3 * c10::elementSize(accumulate_dtype(compute)));
}

int64_t Optimizer::working_bytes(int64_t shard_numbers, at::ScalarType compute) {
  return compute == accumulate_dtype(compute) ? 0 : shard_numbers * static_cast<int64_t>(c10::elementSize(compute));
}

void Optimizer::step(double lr, double gradient_factor, const std::vector<at::Tensor>& gradients) {
  MT_CHECK(gradients.size() == shards_.size(), gradients.size(), " gradients for ", shards_.size(), " groups");
  {
    Timer timer(exposed_s_);
    ++steps_taken_;
    const bool beside = options_.gradients == SlabTier::kDevice;
    MT_CHECK(beside || options_.tier == SlabTier::kHost, "gradients on the host for a state on the device");
    if (beside && gradient_factor != 1.0) {
      at::NoGradGuard no_grad;
      for (const at::Tensor& gradient : gradients) gradient.mul_(gradient_factor);
    }
    const auto step = std::make_shared<const Step>(Step{lr, beside ? 1.0 : gradient_factor, steps_taken_, gradients});
    begin_behind_stream();
    for (size_t i = 0; i < shards_.size(); ++i) {
      MT_CHECK(!pending_[i], "step ", steps_taken_, ": the working copies of ", partition_.groups()[i].layer(),
               " still wait for the step before");
      pending_[i] = run([this, i, step] { update(*step, i); });
    }
  }
  if (!options_.overlap) flush();
}

int64_t Optimizer::run(std::function<void()> job) {
  if (options_.tier == SlabTier::kHost) return worker_.post(std::move(job));
  at::NoGradGuard no_grad;
  job();
  return 0;
}

void Optimizer::begin_behind_stream() {
  // On the stream itself they are behind it anyway.
  if (options_.tier == SlabTier::kDevice) return;
  worker_.post([reached = StreamPoint::of_current(partition_.device())] { reached.wait(); });
}

at::Tensor Optimizer::gradient(const Step& step, size_t piece) {
  const auto of = [&](size_t i) { return pieces_[i].of(step.gradients[pieces_[i].group]); };
  at::Tensor here = of(piece);
  if (here.is_cuda() && options_.tier == SlabTier::kHost) {
    if (piece == 0) window_.fetch(here);
    here = window_.take();
    if (piece + 1 < pieces_.size()) window_.fetch(of(piece + 1));
  }
  return step.gradient_factor != 1.0 ? here.mul_(step.gradient_factor) : here;
}

void Optimizer::update(const Step& step, size_t index) {
  Shard& shard = shards_[index];
  const at::Tensor number = at::full({}, static_cast<double>(step.number), shard.master.options().dtype(at::kFloat));
  for (size_t i = first_piece_[index]; i < first_piece_[index + 1]; ++i) {
    const Piece& piece = pieces_[i];
    const UpdateRule& rule = piece.run.rule;
    at::_fused_adamw_({piece.of(shard.master)}, {gradient(step, i)}, {piece.of(shard.first_moment)},
                      {piece.of(shard.second_moment)}, {}, {number},
                      rule.is_b ? step.lr * options_.lr_b_ratio : step.lr, options_.betas[0], options_.betas[1],
                      rule.decays ? options_.weight_decay : 0.0, options_.eps, /*amsgrad=*/false,
                      /*maximize=*/false);
    round(piece, step.number);
  }
  sent_[index] = rounded();
}

void Optimizer::round(const Piece& piece, int64_t step) {
  const Shard& shard = shards_[piece.group];
  if (shard.working.is_same(shard.master)) return;
  const at::Tensor master = piece.of(shard.master), working = piece.of(shard.working);
  const bool leaves = working.device() != master.device();
  const at::Tensor rounded = !leaves            ? working
                             : master.is_cuda() ? at::empty(master.sizes(), working.options().device(master.device()))
                                                : window_.place(piece.run.count);
  const FlatGroup& group = partition_.groups()[piece.group];
  // Untouched, weights are what was read: most of them bf16 already.
  if (!options_.rounding_seed || group.slab() == nullptr || step == 0) {
    rounded.copy_(master);
  } else {
    const ParameterInfo& first = group.members().front().parameter->info();
    const uint64_t key = stream_key(stream_key(*options_.rounding_seed, "rounding of " + first.name), step);
    round_stochastically(master, rounded, stream_key(key, first.first_expert + first.part.first),
                         group.shard_begin() + piece.run.in_shard);
  }
  if (leaves && master.is_cuda()) working.copy_(rounded, /*non_blocking=*/true);
  if (leaves && !master.is_cuda()) window_.send(rounded, working);
}

StreamPoint Optimizer::rounded() const {
  return options_.tier == SlabTier::kDevice ? StreamPoint::of_current(partition_.device()) : window_.sent();
}

void Optimizer::refresh(size_t index) {
  at::NoGradGuard no_grad;
  const FlatGroup& group = partition_.groups()[index];
  if (TrainedSlab* slab = group.slab()) {
    slab->publish(shards_[index].working, sent_[index]);
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
  begin_behind_stream();
  for (size_t i = 0; i < shards_.size(); ++i) {
    MT_CHECK(!pending_[i], "an update is pending");
    worker_.wait(run([this, i, step = steps_taken_] {
      for (size_t piece = first_piece_[i]; piece < first_piece_[i + 1]; ++piece) round(pieces_[piece], step);
      sent_[i] = rounded();
    }));
    refresh(i);
  }
}

double Optimizer::take_exposed_s() { return std::exchange(exposed_s_, 0.0); }

}  // namespace moetune
