// What tensors of the model became in a run in which they trained themselves, laid down as they lay when it started.
//
//   if (has_trained(saved, blueprint, tensor)) {
//     weight = trained_weight(saved, blueprint, tensor, at::kBFloat16, [&] { return base.read(tensor); });
//   }
#pragma once

#include <torch/types.h>

#include <functional>
#include <string>

#include "trainer/exports/base_model.h"
#include "trainer/exports/saved_run.h"

namespace moetune {

/// Name of the parameter that holds what a tensor of the model became where it trained itself: `piece`, or, of copies
/// of the trunk's embedding and head that are no tensors of their own, the trunk's. Empty where it did not train.
std::string trained_name(const SavedRun& saved, const Blueprint& blueprint, const std::string& piece);

/// Whether any of the weights that `tensor` holds trained themselves. A head beside embeddings that are tied to it
/// trained where they did. Correction biases are no such weights.
bool has_trained(const SavedRun& saved, const Blueprint& blueprint, const BaseTensor& tensor);

/// The masters of what `tensor` holds, of which some has trained, rounded once to `dtype`: fp32 masters of one tensor
/// of the model are in memory at a time, whatever lies in it. `frozen` gives the tensor in `dtype` as it is where
/// nothing of it has trained, for the experts in it that have not; what it gives is written to. UserError naming a
/// tensor whose numbers `dtype` cannot hold.
at::Tensor trained_weight(const SavedRun& saved, const Blueprint& blueprint, const BaseTensor& tensor,
                          at::ScalarType dtype, const std::function<at::Tensor()>& frozen);

}  // namespace moetune
