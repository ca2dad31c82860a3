// What a step cost each rank: memory, bytes moved, time stood waiting. Reported is the most of any rank, figure by
// figure, and all of the rank that waited least, whose waits and computing make up the step.
//
//   RankMeter meter(assembly);
//   RankFigures own = meter.take();          // since the last call
//   at::Tensor table = own.row_among(world.rank(), world.size());
//   world.all_reduce_max(table);             // on a GPU there
//   RankFigures::most(table), RankFigures::of_least_waiting(table);
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>

namespace moetune {

struct Assembly;

struct RankFigures {
  int64_t memory_bytes = 0;            ///< peak since the start of the process
  int64_t weights_copied_bytes = 0;    ///< frozen weights, from host to device
  int64_t weights_gathered_bytes = 0;  ///< frozen weights, received from other ranks
  int64_t exchange_sent_bytes = 0;     ///< tokens to and from experts on other ranks, and their counts
  int64_t tensor_axis_sent_bytes = 0;  ///< rows gathered from and sums scattered to the ranks that share matrices
  int64_t stage_sent_bytes = 0;        ///< activations and gradients to neighbouring pipeline stages
  double weights_wait_s = 0.0;         ///< the device's current stream stood waiting for frozen weights
  double exchange_s = 0.0;             ///< it stood for the exchange of tokens, waiting for other ranks included
  double tensor_axis_s = 0.0;          ///< it was busy with those gathers and sums, likewise
  double stage_wait_s = 0.0;           ///< it stood for what those stages send: most of the bubble
  /// the main thread waited for norm, update and new working copies; the loop fills it in
  double optimizer_wait_s = 0.0;

  double waits_s() const { return weights_wait_s + exchange_s + tensor_axis_s + stage_wait_s + optimizer_wait_s; }

  /// int64 [P, figures], times in microseconds: 0 but for this rank's row, so that the most of all ranks' is the table
  /// of all.
  at::Tensor row_among(int64_t rank, int64_t num_ranks) const;
  /// Of such a table on the CPU: of each figure the most; all of the rank whose waits together are the shortest.
  static RankFigures most(const at::Tensor& table);
  static RankFigures of_least_waiting(const at::Tensor& table);
};

class RankMeter {
 public:
  explicit RankMeter(const Assembly& run) : run_(run) {}
  /// Figures since the last call. The device's work so far must be done, or is waited for.
  RankFigures take();

 private:
  const Assembly& run_;
  int64_t copied_ = 0, gathered_ = 0, exchanged_ = 0, shared_ = 0, sent_ = 0;
};

}  // namespace moetune
