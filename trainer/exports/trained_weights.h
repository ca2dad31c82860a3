// The weights that a run with `adapter: none` trained, laid down as the tensors of the model that it started from.
//
//   const at::Tensor weight = trained_weight(saved, tensor, at::kBFloat16);
#pragma once

#include <torch/types.h>

#include "trainer/exports/base_model.h"
#include "trainer/exports/saved_run.h"

namespace moetune {

/// The masters of what `tensor` holds, rounded once to `dtype`: fp32 masters of one tensor of the model are in memory
/// at a time, whatever lies in it. Correction biases do not train and are no such weights. UserError naming a tensor
/// that the checkpoint lacks, or whose numbers `dtype` cannot hold.
at::Tensor trained_weight(const SavedRun& saved, const BaseTensor& tensor, at::ScalarType dtype);

}  // namespace moetune
