#include "moe/cost.h"

#include <algorithm>

namespace moetune {

Work& Work::operator+=(const Work& other) {
  dense += other.dense;
  grouped += other.grouped;
  attention += other.attention;
  scores += other.scores;
  touched_bytes += other.touched_bytes;
  tensor_axis_bytes += other.tensor_axis_bytes;
  exchange_bytes += other.exchange_bytes;
  return *this;
}

template <typename Visit>
void DenseMaps::visit(const std::vector<std::string>& leaves, const Visit& take) const {
  for (const LinearMap& map : maps_) {
    if (map.stack == 0 && std::find(leaves.begin(), leaves.end(), map.leaf()) != leaves.end()) take(map);
  }
}

bool DenseMaps::keeps_input(const std::string& leaf) const {
  bool keeps = false;
  visit({leaf}, [&](const LinearMap& map) { keeps = traits_.train_weights || map.adapter; });
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
  visit(leaves, [&](const LinearMap& map) {
    const auto outputs = static_cast<double>(map.outputs), inputs = static_cast<double>(map.inputs);
    flops += 2.0 * outputs * inputs;
    if (map.adapter) flops += 2.0 * static_cast<double>(map.adapter->rank) * (outputs + inputs);
  });
  return flops;
}

double DenseMaps::backward_flops(const std::vector<std::string>& leaves) const {
  double flops = 0.0;
  visit(leaves, [&](const LinearMap& map) {
    const auto outputs = static_cast<double>(map.outputs), inputs = static_cast<double>(map.inputs);
    flops += (traits_.train_weights ? 4.0 : 2.0) * outputs * inputs;
    if (map.adapter) flops += 4.0 * static_cast<double>(map.adapter->rank) * (outputs + inputs);
  });
  return flops;
}

}  // namespace moetune
