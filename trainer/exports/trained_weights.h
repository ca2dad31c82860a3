// What tensors of the model became in a run in which they trained themselves, laid down as they lay when it started.
//
//   if (has_trained(saved, blueprint, tensor)) weight = trained_weight(saved, blueprint, tensor, at::kBFloat16);
#pragma once

#include <torch/types.h>

#include "trainer/exports/base_model.h"
#include "trainer/exports/saved_run.h"

namespace moetune {

/// Whether the weights that `tensor` holds trained themselves; those of one tensor on disk are of one part. A head
/// beside embeddings that are tied to it trained where they did. Correction biases are no such weights.
bool has_trained(const SavedRun& saved, const Blueprint& blueprint, const BaseTensor& tensor);

/// The masters of what `tensor` holds, which has trained, rounded once to `dtype`: fp32 masters of one tensor of the
/// model are in memory at a time, whatever lies in it. UserError naming a tensor whose numbers `dtype` cannot hold.
at::Tensor trained_weight(const SavedRun& saved, const Blueprint& blueprint, const BaseTensor& tensor,
                          at::ScalarType dtype);

}  // namespace moetune
