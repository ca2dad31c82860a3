// What a step cost each rank: memory, bytes moved, time stood waiting. Reported is the most of any rank, figure by
// figure.
//
//   RankMeter meter(assembly);
//   RankFigures own = meter.take();          // since the last call
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

  /// int64, times in microseconds: to be reduced over ranks.
  at::Tensor as_tensor() const;
  static RankFigures of_tensor(const at::Tensor& figures);
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
