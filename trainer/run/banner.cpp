#include "trainer/run/banner.h"

#include <ATen/Parallel.h>

#include "parallel/base/error.h"
#include "parallel/base/units.h"
#include "trainer/plan/model_banner.h"

namespace moetune {
namespace {

/// Bytes of the model's tensors as they lie in this process now.
int64_t held_bytes(const Model& model, TrainedSlabs& trained) {
  int64_t bytes = model.slabs->kept_bytes() + trained.kept_bytes();
  for (const PlainTensor& tensor : model.plain) bytes += static_cast<int64_t>(tensor.held.nbytes());
  for (const Parameter& parameter : model.parameters.all()) {
    if (trained.of(parameter) == nullptr) bytes += static_cast<int64_t>(parameter.working.nbytes());
  }
  return bytes;
}

}  // namespace

std::string banner(const Recipe& recipe, const Assembly& run, const MemoryPlan& plan, const DataSummary& data) {
  const int threads = at::get_num_threads();
  std::string text = banner_of_model(recipe, run.blueprint, run.mesh->shape(), plan);
  text += banner_line("device", str(run.device.str(), ", ", threads, threads == 1 ? " thread" : " threads",
                                    " a rank, slices of ", run.slice_tokens, " tokens"));
  text +=
      banner_line("data", str(data.documents, " documents, ", count_text(data.tokens), " tokens, ",
                              count_text(data.targets), " of them trained, in ", data.sequences, " sequences",
                              data.eval_documents > 0 ? str("; ", data.eval_documents, " documents held out") : ""));
  text += banner_line(
      "steps", str(data.steps, " of ", recipe.train.batch, " sequences of up to ", recipe.data.max_tokens, " tokens"));
  const bool pipeline = plan.pipeline.stages.size() > 1;
  text += banner_line("memory", str("of a rank", pipeline ? str(" of stage ", plan.stage, ", the fullest,") : "",
                                    " as planned; the model holds ", bytes_text(held_bytes(*run.model, *run.trained)),
                                    pipeline ? " on rank 0 now" : " of it now"));
  return text + memory_table(plan, /*with_formulas=*/false);
}

}  // namespace moetune
