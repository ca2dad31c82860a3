// AdamW on the CPU (Loshchilov, Hutter 2019), partitioned and out of the way: each rank holds masters and moments of
// its own shards in host memory; a step is final at once, and its arithmetic runs on a thread beside the main one,
// layer by layer, under the next way down.
//
//   Optimizer optimizer(partition, {.betas = {0.9, 0.999}, ...});  // takes the parameters' masters over
//   hooks.before = [&](LayerId layer) { optimizer.before_layer(layer); };
//   optimizer.step(lr, clip_factor, reducer.gradients());          // returns at once
//   optimizer.flush();                                             // before working copies are read outside a sweep
//
// LibTorch's fused CPU kernel does the arithmetic: one pass over parameter, gradient and both moments. With and without
// overlap it is the same arithmetic in the same order, so the same bits; it cuts work between threads at multiples of
// its vectors, so their number does not show either.
#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <vector>

#include "trainer/update/ordered_worker.h"
#include "trainer/update/partition.h"

namespace moetune {

struct OptimizerOptions {
  double lr_b_ratio = 1.0;  ///< learning rate of B over that of the rest (LoRA+, Hayou et al. 2024)
  std::array<double, 2> betas = {0.9, 0.999};
  double eps = 1e-8;
  double weight_decay = 0.0;  ///< of parameters that decay (ParameterInfo)
  bool overlap = true;        ///< false: step() returns when all is updated
  /// Weights' masters become working copies by chance (trainer/update/stochastic_rounding.h), drawn from this seed;
  /// none: to the nearest.
  std::optional<uint64_t> rounding_seed = {};
};

class Optimizer {
 public:
  /// This rank's part of a group of the partition: host memory, [shard_size], wide.
  struct Shard {
    at::Tensor master, first_moment, second_moment;
    at::Tensor working;  ///< the master in compute dtype; the master itself where that is wide
  };

  /// Cuts this rank's shards out of the parameters' masters, which are released.
  Optimizer(const Partition& partition, const OptimizerOptions& options);

  /// p <- p (1 - lr wd) - lr m_hat / (sqrt(v_hat) + eps), wd 0 for what does not decay, with gradients times
  /// `gradient_factor`, by group of the partition. Every number takes part, a zero gradient included. `gradients` are
  /// read and scaled until the working copies are back.
  void step(double lr, double gradient_factor, const std::vector<at::Tensor>& gradients);
  /// Waits for the pending update of the layer's parameters, if any, and refreshes their working copies, in place, on
  /// every rank that holds them. Collective over the mesh.
  void before_layer(LayerId layer);
  /// The same of one slab that publishes alone; nothing for others. Not collective.
  void before_slab(const TrainedSlab& slab);
  /// The same of all slabs that come and go and do not publish alone, before a pass fetches any. Collective over the
  /// mesh.
  void before_pass();
  /// before_layer for all layers. Collective over the mesh.
  void flush();
  /// Working copies of everything from the masters, after a caller wrote to shards(). Nothing may be pending.
  /// Collective.
  void publish();
  /// Seconds that the main thread spent in the calls above since this was asked last: what the optimizer shows of
  /// itself.
  double take_exposed_s();

  const Partition& partition() const { return partition_; }
  /// By group of the partition. Flush before reading or writing.
  std::vector<Shard>& shards() { return shards_; }
  int64_t steps_taken() const { return steps_taken_; }
  void set_steps_taken(int64_t steps) { steps_taken_ = steps; }
  /// Host bytes of a rank's shards of so many numbers: masters, moments, gradients, working copies on their way.
  static int64_t host_bytes(int64_t shard_numbers, at::ScalarType compute);

 private:
  void update(size_t index, double lr, int64_t step, const at::Tensor& gradient);
  /// The shard's working copies from its masters, as they stand behind a step.
  void round(size_t index, int64_t step);
  void refresh(size_t index);
  /// Waits for the group's pending update, if any, and publishes it.
  void finish(size_t index);

  const Partition& partition_;
  OptimizerOptions options_;
  std::vector<Shard> shards_;
  std::vector<std::optional<int64_t>> pending_;  ///< by group: the worker's ticket
  int64_t steps_taken_ = 0;
  double exposed_s_ = 0.0;
  OrderedWorker worker_;  // last: it ends before what its jobs touch
};

}  // namespace moetune
