#include "trainer/exports/logits.h"

#include "parallel/base/error.h"
#include "parallel/base/log.h"
#include "parallel/bytes/safetensors.h"
#include "parallel/bytes/tensor_io.h"
#include "trainer/assemble.h"
#include "trainer/data/dataset.h"
#include "trainer/data/step_batch.h"
#include "trainer/exports/earlier_output.h"
#include "trainer/exports/saved_run.h"
#include "trainer/state/checkpoint.h"

namespace moetune {

void write_logits(const std::string& run_path, const std::string& data, int64_t num_documents, const std::string& to,
                  Launch& launch) {
  const SavedRun saved(run_path);
  const auto holds_logits = [&] {
    return SafetensorsFile(to).names() == std::vector<std::string>{"input_ids", "logits", "positions"};
  };
  require_replaceable(to, holds_logits, to, "logits of an earlier call");
  Recipe recipe = saved.recipe();
  recipe.mesh = MeshRecipe();
  Assembly run = assemble(recipe, launch);
  load_weights(saved.state(), *run.model, run.trained.get());
  const Documents documents =
      load_documents(recipe, "", DataFiles::of(data), run.blueprint, launch, PreparationTools::from_environment());
  BatchOptions options;
  options.batch = std::min(num_documents, documents.size());
  options.max_tokens = recipe.data.max_tokens;
  options.packing = options.shuffle = false;
  options.epochs = 1;
  Batches batches(documents, options);
  const StepBatch batch =
      make_step_batch(batches.local(0, 0, 1), *run.model, run.slice_tokens, run.device, run.compute);
  Sweep sweep(*run.model, run.sweep_options);
  std::vector<at::Tensor> positions;
  for (const Slice& slice : batch.main.slices) positions.push_back(slice.position_U);
  write_tensors(to,
                {{"input_ids", batch.input_U.cpu()},
                 {"positions", at::cat(positions).cpu()},
                 {"logits", sweep.logits(batch).to(at::kCPU, at::kFloat)}},
                {});
  log_info(str(to, ": logits of ", batch.main.num_rows, " tokens of ", options.batch, " documents"));
}

}  // namespace moetune
