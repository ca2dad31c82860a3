#include "moe/swiglu_mlp.h"

namespace moetune {

PartCost swiglu_mlp_cost(const DenseMaps& maps, int64_t width, bool gates_output, const PassTraits& traits) {
  const std::vector<std::string> leaves{"gate_proj", "up_proj", "down_proj"};
  const int64_t P = traits.parts.dense, size = traits.element_bytes(), F = maps.outputs("gate_proj");
  PartCost cost;
  if (F == 0) return cost;
  int64_t saved = (maps.keeps_input("down_proj") ? 3 : 2) * F;  // gate, up, and the input of down
  if (P > 1 && (maps.keeps_input("gate_proj") || maps.keeps_input("up_proj"))) saved += P * width;
  cost.saved = saved * size + maps.low_bytes(leaves);
  // The gradient of h with those of gate and up, or h itself; on CPUs what these are made of too.
  cost.transient = cost.transient_of_long = size * ((traits.on_gpu() ? 3 : 4) * F + 2 * P * width);
  cost.forward.dense = maps.forward_flops(leaves);
  cost.forward.touched_bytes = static_cast<double>(size * 3 * F) + maps.forward_adapter_bytes(leaves);
  if (!gates_output) cost.not_again.dense = maps.spared_flops({"down_proj"});
  cost.backward.dense = maps.backward_flops(leaves);
  cost.backward.touched_bytes = static_cast<double>(size * 5 * F) + maps.backward_adapter_bytes(leaves);
  if (P > 1) {
    cost.forward.tensor_axis_bytes = cost.backward.tensor_axis_bytes = static_cast<double>((P - 1) * 2 * width * size);
    if (!gates_output) cost.not_again.tensor_axis_bytes = static_cast<double>((P - 1) * width * size);
    cost.tensor_axis_calls = 2;
    cost.tensor_axis_calls_again = gates_output ? 2 : 1;
  }
  return cost;
}

}  // namespace moetune
