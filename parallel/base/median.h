// The middle of some values, the mean of both in the middle of an even number of them.
#pragma once

#include <algorithm>
#include <vector>

namespace moetune {

/// Of at least one value.
inline double median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  const size_t half = values.size() / 2;
  return values.size() % 2 == 1 ? values[half] : (values[half - 1] + values[half]) / 2.0;
}

}  // namespace moetune
