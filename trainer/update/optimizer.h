// AdamW (Loshchilov, Hutter 2019), partitioned: each rank holds masters and moments of its own shards.
//
// In host memory they are out of the way: a step is final at once, and its arithmetic runs on a thread beside the main
// one, layer by layer, under the next way down. Gradients that lie on the device come to it, and new working copies go
// there, a piece at a time. On the device a step is a few kernels.
//
//   Optimizer optimizer(partition, {.betas = {0.9, 0.999}, ...});  // takes the parameters' masters over
//   hooks.before = [&](LayerId layer) { optimizer.before_layer(layer); };
//   optimizer.step(lr, clip_factor, reducer.gradients());          // returns at once
//   optimizer.flush();                                             // before working copies are read outside a sweep
//
// LibTorch's fused kernel does the arithmetic: one pass over parameter, gradient and both moments. With and without
// overlap it is the same arithmetic in the same order, so the same bits; on a CPU it cuts work between threads at
// multiples of its vectors, so their number does not show either. A GPU's bits are others.
#pragma once

#include <array>
#include <cstdint>
#include <functional>
#include <optional>
#include <vector>

#include "trainer/update/host_window.h"
#include "trainer/update/ordered_worker.h"
#include "trainer/update/partition.h"

namespace moetune {

struct OptimizerOptions {
  double lr_b_ratio = 1.0;  ///< learning rate of B over that of the rest (LoRA+, Hayou et al. 2024)
  std::array<double, 2> betas = {0.9, 0.999};
  double eps = 1e-8;
  double weight_decay = 0.0;             ///< of parameters that decay (ParameterInfo)
  bool overlap = true;                   ///< false: step() returns when all is updated
  SlabTier tier = SlabTier::kHost;       ///< of masters and moments
  SlabTier gradients = SlabTier::kHost;  ///< of the gradients that will come; the device where the state is there
  /// Weights' masters become working copies by chance (trainer/update/stochastic_rounding.h), drawn from this seed;
  /// none: to the nearest.
  std::optional<uint64_t> rounding_seed = {};
};

class Optimizer {
 public:
  /// This rank's part of a group of the partition, [shard_size].
  struct Shard {
    at::Tensor master, first_moment, second_moment;  ///< wide
    /// The master in compute dtype, on its way to all copies: a slab's own() where there is one, otherwise beside the
    /// master, or the master itself where that will do.
    at::Tensor working;
  };

  /// Cuts this rank's shards out of the parameters' masters, which are released.
  Optimizer(const Partition& partition, const OptimizerOptions& options);

  /// p <- p (1 - lr wd) - lr m_hat / (sqrt(v_hat) + eps), wd 0 for what does not decay, with gradients times
  /// `gradient_factor`, by group of the partition, all where the options say. Every number takes part, a zero gradient
  /// included. `gradients` are read and scaled until the working copies are back. What reads the working copies now
  /// must have been given to the current stream before: the new ones are written when it is through.
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
  /// Bytes of masters and moments of so many numbers of a rank's shards, and of working copies beside them.
  static int64_t state_bytes(int64_t shard_numbers, at::ScalarType compute);
  static int64_t working_bytes(int64_t shard_numbers, at::ScalarType compute);

 private:
  /// A step that the worker takes.
  struct Step {
    double lr;
    double gradient_factor;  ///< of gradients on the host; those on the device are scaled
    int64_t number;
    std::vector<at::Tensor> gradients;
  };
  /// Numbers of a shard that are updated alike and at once.
  struct Piece {
    size_t group;
    FlatGroup::Run run;
    at::Tensor of(const at::Tensor& shard) const { return shard.narrow(0, run.in_shard, run.count); }
  };

  /// On the worker where the state is on the host: its ticket. Otherwise now, on the current stream: a ticket that is
  /// done.
  int64_t run(std::function<void()> job);
  /// Jobs run from now on begin when the current stream is through with what it has: gradients are whole then, and the
  /// working copies of now were read.
  void begin_behind_stream();
  void update(const Step& step, size_t index);
  /// Of a piece, where the state is, scaled. Those of the next are on their way then.
  at::Tensor gradient(const Step& step, size_t piece);
  /// Working copies from masters, as they stand behind a step.
  void round(const Piece& piece, int64_t step);
  void refresh(size_t index);
  /// From there on what was rounded so far is in its place.
  StreamPoint rounded() const;
  /// Waits for the group's pending update, if any, and publishes it.
  void finish(size_t index);

  const Partition& partition_;
  OptimizerOptions options_;
  std::vector<Shard> shards_;
  std::vector<Piece> pieces_;                    ///< of all groups, in their order
  std::vector<size_t> first_piece_;              ///< by group; behind the last their number
  std::vector<std::optional<int64_t>> pending_;  ///< by group: the worker's ticket
  std::vector<StreamPoint> sent_;                ///< by group: from there on its new working copies are in their place
  HostWindow window_;                            ///< the worker's
  int64_t steps_taken_ = 0;
  double exposed_s_ = 0.0;
  OrderedWorker worker_;  // last: it ends before what its jobs touch
};

}  // namespace moetune
