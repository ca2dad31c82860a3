#include "trainer/recipe/recipe_meaning.h"

#include <ATen/Context.h>

#include <algorithm>

#include "moe/inventory.h"
#include "parallel/base/error.h"

namespace moetune {

at::ScalarType scalar_type(ComputeType compute) {
  switch (compute) {
    case ComputeType::kBf16: return at::kBFloat16;
    case ComputeType::kFp32: return at::kFloat;
    case ComputeType::kFp64: return at::kDouble;
  }
  throw InternalError("a compute type of no value");
}

AdapterTargets adapter_targets(const Recipe& recipe) {
  if (!recipe.adapter) return AdapterTargets();
  const AdapterRecipe& adapter = *recipe.adapter;
  AdapterTargets::Options options{adapter.targets, adapter.rank, adapter.alpha, adapter.rslora, adapter.dropout, {}};
  options.ranks.assign(adapter.ranks.begin(), adapter.ranks.end());
  return AdapterTargets(options);
}

MeshShape mesh_shape(const Recipe& recipe, const Blueprint& blueprint, int64_t world_size) {
  std::vector<std::string> mistakes;
  if (recipe.mesh.ep > 0 && blueprint.router.experts % recipe.mesh.ep != 0) {
    mistakes.push_back(str(recipe.origin("mesh.ep"), ": mesh.ep: ", recipe.mesh.ep, " ranks do not divide the model's ",
                           blueprint.router.experts, " routed experts"));
  }
  for (const std::string& mistake : cut_mistakes(blueprint, recipe.model.base, recipe.mesh.tp)) {
    mistakes.push_back(str(recipe.origin("mesh.tp"), ": mesh.tp: ", mistake));
  }
  const int64_t tp = recipe.mesh.tp, expert_tp = recipe.mesh.expert_tp;
  const std::string expert_place = str(recipe.origin("mesh.expert_tp"), ": mesh.expert_tp: ");
  if (expert_tp != 1 && expert_tp != tp) {
    mistakes.push_back(
        str(expert_place, expert_tp,
            tp > 1 ? str("; allowed is 1, or mesh.tp, which is ", tp) : str("; allowed is 1 where mesh.tp is 1")));
  } else {
    for (const std::string& mistake : expert_cut_mistakes(blueprint, recipe.model.base, expert_tp)) {
      mistakes.push_back(expert_place + mistake);
    }
  }
  return resolve_mesh({recipe.mesh.pp, recipe.mesh.dp.value_or(0), recipe.mesh.ep, tp, expert_tp}, world_size,
                      std::move(mistakes));
}

at::DeviceType device_type(const Recipe& recipe) {
  const bool cuda =
      recipe.run.device == DeviceChoice::kCuda || (recipe.run.device == DeviceChoice::kAuto && at::hasCUDA());
  return cuda ? at::kCUDA : at::kCPU;
}

int64_t num_kept_layers(const KeepLayers& keep, int64_t num_blocks) {
  switch (keep.kind) {
    case KeepLayers::Kind::kAll: return num_blocks;
    case KeepLayers::Kind::kCount: return std::min(num_blocks, keep.num_layers);
    case KeepLayers::Kind::kAuto:
    case KeepLayers::Kind::kNone: return 0;
  }
  throw InternalError("keep of no kind");
}

int64_t automatic_slice_tokens(at::Device device) { return device.is_cuda() ? 8192 : 2048; }

}  // namespace moetune
