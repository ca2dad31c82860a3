// Takes the steps of a recipe, as `moetune train` does, and writes logits, losses, gradients and what was trained to a
// safetensors file, for the comparisons in this folder. Alone, or under mpirun with the recipe's mesh.
//
//   moetune_parity RECIPE.yaml OUT.safetensors
#include <algorithm>
#include <iostream>

#include "moe/families/family.h"
#include "parallel/base/error.h"
#include "parallel/bytes/tensor_io.h"
#include "trainer/assemble.h"
#include "trainer/data/dataset.h"
#include "trainer/recipe/recipe_load.h"
#include "trainer/run/expert_choice.h"
#include "trainer/run/stepper.h"
#include "trainer/state/frozen_digest.h"
#include "trainer/verify/whole_tensors.h"

using namespace moetune;

namespace {

/// Seven rows of the head and two experts at a time: several chunks of each even in models as small as the tests'.
AssemblyOptions small_chunks(const Recipe& recipe, const Blueprint& blueprint) {
  const auto size = static_cast<int64_t>(c10::elementSize(scalar_type(recipe.model.compute)));
  return {.head_chunk_rows = 7,
          .expert_chunk_bytes = 2 * 3 * blueprint.width * blueprint.experts.width * size,
          .poison_released = true};
}

class Output {
 public:
  void add(const std::string& name, const at::Tensor& tensor) {
    tensors_.emplace_back(name, tensor.detach().cpu().clone(at::MemoryFormat::Contiguous));
  }
  void add(const std::string& name, const std::vector<double>& numbers) { add(name, at::tensor(numbers, at::kDouble)); }
  /// Under their Hugging Face names: a stack expert by expert, those that `parameters` names.
  void add(const std::string& prefix, const std::map<std::string, at::Tensor>& whole, const ParameterSet& parameters) {
    for (const auto& [name, tensor] : whole) {
      if (name.find('*') == std::string::npos) {
        add(prefix + name, tensor);
        continue;
      }
      const auto found = std::find_if(parameters.all().begin(), parameters.all().end(),
                                      [&](const Parameter& one) { return one.name() == name; });
      MT_CHECK(found != parameters.all().end(), name, " is of another stage of a pipeline");
      const std::vector<int64_t>& experts = found->info().experts;
      for (int64_t row = 0; row < tensor.size(0); ++row) {
        add(prefix + expert_name(name, experts.empty() ? row : experts[row]), tensor[row]);
      }
    }
  }
  void write(const std::string& path) const { write_tensors(path, tensors_, {}); }

 private:
  std::vector<std::pair<std::string, at::Tensor>> tensors_;
};

/// Of the first step's batch, every rank's rows at their place.
at::Tensor logits(Assembly& run, Batches& batches) {
  const RankBatch local = own_part(run, batches, 0);
  at::Tensor logits_TV = at::zeros({local.global.tokens, run.blueprint.vocab},
                                   at::TensorOptions(accumulate_dtype(run.compute)).device(run.device));
  Sweep sweep(*run.model, run.sweep_options);
  logits_TV.index_copy_(0, at::tensor(local.global_tokens, at::kLong).to(run.device),
                        sweep.logits(own_batch(run, local)).to(logits_TV.scalar_type()));
  run.mesh->data().all_reduce_sum(logits_TV);
  return logits_TV;
}

/// Of the first step's batch, what every token chose, by number of the layer: int64 [T, K], -1 for a row that the MTP
/// module does not have.
std::map<int64_t, at::Tensor> chosen_experts(Assembly& run, Batches& batches) {
  const StepBatch batch = own_batch(run, own_part(run, batches, 0));
  Sweep sweep(*run.model, run.sweep_options);
  const std::vector<at::Tensor> expert_LTK = sweep.route(batch).expert_LTK;
  const RouterSpec& router = run.blueprint.router;
  std::map<int64_t, at::Tensor> chosen;
  for (const LayerId layer : run.blueprint.blocks(run.model->mtp != nullptr || run.sweep_options.pipeline.mtp)) {
    if (!run.blueprint.has_experts(layer)) continue;
    const at::Tensor own_TK = expert_LTK.at(chosen.size());
    at::Tensor all_TK = at::zeros({batch.global.tokens, router.top_k}, at::TensorOptions(at::kLong).device(run.device));
    if (own_TK.defined()) {
      const at::Tensor row = (own_TK.select(1, 0) < router.experts).nonzero().squeeze(1);  // padding chooses E
      all_TK.index_copy_(0, (layer.is_mtp() ? batch.mtp : batch.main).token_T.index_select(0, row),
                         own_TK.index_select(0, row).to(at::kLong) + 1);
    }
    run.model->axis.sum(all_TK);
    sum_over_mesh(run, all_TK);
    chosen[layer.number()] = all_TK - 1;
  }
  return chosen;
}

int run_recipe(const std::string& path, const std::string& to, Launch& launch) {
  const Recipe recipe = load_recipe(path);
  const Blueprint blueprint = load_blueprint(recipe.model.path);
  const Documents documents =
      load_documents(recipe, "data.train", recipe.data.train, blueprint, launch, PreparationTools::from_environment());
  Batches batches(documents, batch_options(recipe));
  Assembly run = assemble(recipe, launch, {}, small_chunks(recipe, blueprint));
  const int64_t num_steps = recipe.train.steps.value();
  if (const std::optional<ChoiceByLoad> choice = choice_by_load(recipe)) {
    choose_experts(run,
                   experts_by_load(run, batches, std::min(num_steps, batches.steps_of_epochs(1)), choice->top).experts);
  }
  load_adapter_from(recipe, run);

  Output output;
  const std::string digest = frozen_digest(*run.model, *run.mesh);
  output.add("frozen_digest", at::tensor(std::vector<int64_t>(digest.begin(), digest.end()), at::kLong));
  output.add("logits", logits(run, batches));
  for (const auto& [layer, expert_TK] : chosen_experts(run, batches)) output.add(str("experts/", layer), expert_TK);
  Stepper stepper(recipe, run, &launch.progress());
  std::vector<double> losses, norms;
  for (int64_t step = 0; step < num_steps; ++step) {
    const StepReport report = stepper.train(batches, step, num_steps);
    losses.push_back(report.loss);
    norms.push_back(report.grad_norm);
    if (step > 0) continue;
    output.add("loss", std::vector{report.loss});
    if (report.mtp_loss) output.add("mtp_loss", std::vector{*report.mtp_loss});
    if (report.balance_loss) output.add("balance_loss", std::vector{*report.balance_loss});
    if (report.load_LE.defined()) output.add("load", report.load_LE);
    stepper.optimizer().flush();
    output.add("grad/", whole_tensors(stepper.partition(), stepper.gradients(), *run.mesh), run.model->parameters);
  }
  stepper.optimizer().flush();
  output.add("losses", losses);
  output.add("grad_norms", norms);
  std::vector<at::Tensor> masters;
  for (const Optimizer::Shard& shard : stepper.optimizer().shards()) masters.push_back(shard.master);
  output.add(recipe.adapter ? "adapter/" : "weight/", whole_tensors(stepper.partition(), masters, *run.mesh),
             run.model->parameters);
  for (size_t block = 0; block < run.model->blocks.size(); ++block) {
    if (!run.model->blocks[block].has_correction_bias()) continue;
    output.add(str("router_bias/", block), run.model->blocks[block].router()->bias());
  }
  MT_CHECK(frozen_digest(*run.model, *run.mesh) == digest, "a frozen weight changed");
  if (launch.rank() == 0) output.write(to);
  return 0;
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 3) {
    std::cerr << "usage: moetune_parity RECIPE.yaml OUT.safetensors\n";
    return 2;
  }
  Launch launch;
  return run_guarded(launch, [&] { return run_recipe(argv[1], argv[2], launch); });
}
