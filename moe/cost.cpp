#include "moe/cost.h"

#include <algorithm>

namespace moetune {

Work& Work::add(const Work& other, double times) {
  dense += times * other.dense;
  grouped += times * other.grouped;
  attention += times * other.attention;
  scores += times * other.scores;
  touched_bytes += times * other.touched_bytes;
  tensor_axis_bytes += times * other.tensor_axis_bytes;
  exchange_bytes += times * other.exchange_bytes;
  return *this;
}

double forward_flops(const LinearMap& map) {
  const auto outputs = static_cast<double>(map.outputs), inputs = static_cast<double>(map.inputs);
  const double adapter = map.adapter ? 2.0 * static_cast<double>(map.adapter->rank) * (outputs + inputs) : 0.0;
  return 2.0 * outputs * inputs + adapter;
}

double backward_flops(const LinearMap& map) {
  const auto outputs = static_cast<double>(map.outputs), inputs = static_cast<double>(map.inputs);
  const double adapter = map.adapter ? 4.0 * static_cast<double>(map.adapter->rank) * (outputs + inputs) : 0.0;
  double trained = map.trained ? 1.0 : 0.0;
  if (map.trained && map.stack > 0) {
    trained = static_cast<double>(map.trained_experts.count(map.stack)) / static_cast<double>(map.stack);
  }
  return (2.0 + 2.0 * trained) * outputs * inputs + adapter;
}

template <typename Visit>
void DenseMaps::visit(const std::vector<std::string>& leaves, const Visit& take) const {
  for (const LinearMap& map : maps_) {
    if (map.stack == 0 && std::find(leaves.begin(), leaves.end(), map.leaf()) != leaves.end()) take(map);
  }
}

bool DenseMaps::keeps_input(const std::string& leaf) const {
  bool keeps = false;
  visit({leaf}, [&](const LinearMap& map) { keeps = map.trained || map.adapter; });
  return keeps;
}

int64_t DenseMaps::low_bytes(const std::vector<std::string>& leaves) const {
  int64_t elements = 0;
  visit(leaves, [&](const LinearMap& map) { elements += map.adapter ? map.adapter->rank : 0; });
  return elements * traits_.element_bytes();
}

int64_t DenseMaps::outputs(const std::string& leaf) const {
  int64_t outputs = 0;
  visit({leaf}, [&](const LinearMap& map) { outputs = traits_.parts.dense * map.part(traits_.parts).outputs; });
  return outputs;
}

// A map that the axis cuts works on the rows of all ranks with its part; one that each rank has whole on its own rows.
// Either way a row of this rank's takes the whole map once.
double DenseMaps::forward_flops(const std::vector<std::string>& leaves) const {
  double flops = 0.0;
  visit(leaves, [&](const LinearMap& map) { flops += moetune::forward_flops(map); });
  return flops;
}

double DenseMaps::backward_flops(const std::vector<std::string>& leaves) const {
  double flops = 0.0;
  visit(leaves, [&](const LinearMap& map) { flops += moetune::backward_flops(map); });
  return flops;
}

double DenseMaps::spared_flops(const std::vector<std::string>& leaves) const {
  double flops = 0.0;
  visit(leaves, [&](const LinearMap& map) {
    const int64_t low = map.adapter ? map.adapter->rank : 0;
    if (!map.trained) flops += 2.0 * static_cast<double>(map.outputs * (map.inputs + low));
  });
  return flops;
}

// x A^T reads x, and what B makes of it is added to y; backwards d y is read for B and its gradient, x for that of A,
// and A's part is added to d x.
double DenseMaps::forward_adapter_bytes(const std::vector<std::string>& leaves) const {
  int64_t elements = 0;
  visit(leaves, [&](const LinearMap& map) { elements += map.adapter ? map.inputs + 2 * map.outputs : 0; });
  return static_cast<double>(elements * traits_.element_bytes());
}

double DenseMaps::backward_adapter_bytes(const std::vector<std::string>& leaves) const {
  int64_t elements = 0;
  visit(leaves, [&](const LinearMap& map) { elements += map.adapter ? 3 * map.inputs + 2 * map.outputs : 0; });
  return static_cast<double>(elements * traits_.element_bytes());
}

}  // namespace moetune
