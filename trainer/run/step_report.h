// The figures of one step, already summed over the mesh.
#pragma once

#include <cstdint>
#include <optional>

#include "trainer/run/rank_meter.h"

namespace moetune {

struct StepReport {
  int64_t step = 0;  ///< steps done, from 1
  double loss = 0.0;
  std::optional<double> mtp_loss, balance_loss;
  int64_t tokens = 0, target_tokens = 0;
  double grad_norm = 0.0;
  double lr = 0.0;
  double step_s = 0.0;
  std::optional<double> replica_check_s;  ///< of step_s, where replicas were compared
  RankFigures ranks;                      ///< of each figure the most of any rank
  RankFigures least_waiting;              ///< of the rank that waited least
  at::Tensor load_LE;                     ///< int64 [MoE layers, E]; undefined for a dense model
};

}  // namespace moetune
