// Gradients that a test's pass left with its parameters.
//
//   const std::vector<at::Tensor> d = taken_gradients(parameters);   // in their order; the next pass begins with none
#pragma once

#include <vector>

#include "lora/adapters/parameter.h"

namespace moetune {

inline std::vector<at::Tensor> taken_gradients(ParameterSet& parameters) {
  std::vector<at::Tensor> gradients;
  for (Parameter& parameter : parameters.all()) {
    gradients.push_back(parameter.gradient().clone());
    parameter.clear_gradient();
  }
  return gradients;
}

}  // namespace moetune
