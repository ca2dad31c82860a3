#include "trainer/run/evaluation.h"

#include "trainer/data/batch_groups.h"
#include "trainer/data/step_batch.h"

namespace moetune {
namespace {

/// Adds this rank's losses to rows (sum, divisor, targets) of its documents, fp64 on the CPU.
void add_by_document(const RankBatch& local, const at::Tensor& loss_n, at::Tensor& sums_N3) {
  const at::Tensor loss = loss_n.to(at::kCPU, at::kDouble).contiguous();
  const double* next = loss.const_data_ptr<double>();
  auto sums = sums_N3.accessor<double, 2>();
  for (size_t i = 0; i < local.documents.size(); ++i) {
    const int64_t document = local.documents[i];
    for (int64_t row = local.document_begins[i]; row < local.document_begins[i + 1]; ++row) {
      if (local.targets[row] == kNotTrained) continue;
      sums[document][0] += *next++;
      sums[document][1] += local.target_weights.empty() ? 1.0 : local.target_weights[row];
      sums[document][2] += 1.0;
    }
  }
}

}  // namespace

RankBatch own_part(Assembly& run, Batches& batches, int64_t step) {
  Communicator& data = run.mesh->data();
  return batches.local(step, data.rank(), data.size());
}

StepBatch own_batch(const Assembly& run, const RankBatch& local) {
  return make_step_batch(local, *run.model, run.slice_tokens, run.device, run.compute);
}

std::vector<StepBatch> own_groups(const Assembly& run, const RankBatch& local) {
  std::vector<StepBatch> groups;
  for (const RankBatch& group : batch_groups(local, run.groups)) groups.push_back(own_batch(run, group));
  return groups;
}

void sum_over_mesh(Assembly& run, const at::Tensor& sum) {
  run.mesh->data().all_reduce_sum(sum);
  run.mesh->pp().all_reduce_sum(sum);
}

Evaluation evaluate(Sweep& sweep, Assembly& run, Batches& batches, int64_t max_sequences,
                    std::vector<DocumentLoss>* by_document) {
  Evaluation total;
  at::Tensor sums_N3;
  if (by_document != nullptr) sums_N3 = at::zeros({static_cast<int64_t>(by_document->size()), 3}, at::kDouble);
  for (int64_t step = 0; max_sequences == 0 || total.sequences < max_sequences; ++step) {
    const RankBatch local = own_part(run, batches, step);
    if (local.global.sequences == 0) break;
    const SweepResult result = sweep.evaluate(own_groups(run, local));
    at::Tensor sum = at::zeros({1}, at::TensorOptions(at::kDouble).device(run.device));
    if (result.loss_sum.defined()) sum.add_(result.loss_sum);
    sum_over_mesh(run, sum);
    total.loss_sum += sum.item<double>();
    total.divisor += local.global.divisor();
    total.targets += local.global.targets;
    total.sequences += local.global.sequences;
    if (by_document != nullptr && result.loss_n.defined()) add_by_document(local, result.loss_n, sums_N3);
  }
  if (by_document == nullptr) return total;
  at::Tensor all_N3 = sums_N3.to(run.device);
  sum_over_mesh(run, all_N3);
  all_N3 = all_N3.cpu();
  const auto sums = all_N3.accessor<double, 2>();
  for (size_t i = 0; i < by_document->size(); ++i) {
    const auto row = static_cast<int64_t>(i);
    (*by_document)[i] = {sums[row][0], sums[row][1], static_cast<int64_t>(sums[row][2])};
  }
  return total;
}

}  // namespace moetune
