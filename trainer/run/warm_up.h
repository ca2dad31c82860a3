// What a GPU has to prepare for the data of a run, done before its first step.
//
//   warm_up_attention(run, {&train_documents, &eval_documents});
//
// cuDNN compiles a program for each length of a long document (moe/attention/ragged_attention.h), forward and backward:
// met one by one, they would make the first dozen steps several times as long as those that follow.
#pragma once

#include <vector>

#include "trainer/assemble.h"
#include "trainer/data/documents.h"

namespace moetune {

/// Makes the programs for all documents of these, whichever rank they go to, and says how many in how long. Nothing to
/// do on CPUs and in wide dtypes. Null pointers are skipped. Not collective.
void warm_up_attention(const Assembly& run, const std::vector<const Documents*>& data);

}  // namespace moetune
