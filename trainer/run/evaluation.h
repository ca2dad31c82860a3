// Held-out loss: way down and head over data, a global batch at a time; nothing trains.
//
//   const Evaluation held_out = evaluate(sweep, run, batches, /*max_sequences=*/0, &by_document);
//   held_out.loss();   // mean negative log-likelihood of the target tokens
#pragma once

#include <cstdint>
#include <vector>

#include "trainer/assemble.h"
#include "trainer/data/batches.h"

namespace moetune {

/// Sums over the mesh.
struct Evaluation {
  double loss_sum = 0.0, divisor = 0.0;
  int64_t targets = 0, sequences = 0;
  /// 0 without a target.
  double loss() const { return divisor > 0.0 ? loss_sum / divisor : 0.0; }
};

/// The same of a document of the data; targets 0 where it was not come to.
struct DocumentLoss {
  double loss_sum = 0.0, divisor = 0.0;
  int64_t targets = 0;
  double loss() const { return divisor > 0.0 ? loss_sum / divisor : 0.0; }
};

/// What this rank takes of a global batch.
RankBatch own_part(Assembly& run, Batches& batches, int64_t step);
/// The same on the device, as a whole, or in the groups in which it goes through the model.
StepBatch own_batch(const Assembly& run, const RankBatch& local);
std::vector<StepBatch> own_groups(const Assembly& run, const RankBatch& local);
/// Adds a sum over all ranks that take other documents, and over the stages, of which one may alone have it.
/// Collective.
void sum_over_mesh(Assembly& run, const at::Tensor& sum);

/// The loss of a stream that ends, whole global batches of it until they have `max_sequences` (0: all). `by_document`,
/// if given, has an entry for each document of the data and receives what every rank found of it. Collective over the
/// mesh.
Evaluation evaluate(Sweep& sweep, Assembly& run, Batches& batches, int64_t max_sequences,
                    std::vector<DocumentLoss>* by_document = nullptr);

}  // namespace moetune
