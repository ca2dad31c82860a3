#include "trainer/sweep/named_gradients.h"

#include <torch/csrc/autograd/autograd.h>

namespace moetune {

void NamedGradients::of(const at::Tensor& output, const at::Tensor& d_output) {
  if (!output.defined() || !output.requires_grad()) return;
  outputs_.push_back(output);
  d_outputs_.push_back(d_output);
}

void NamedGradients::in(const at::Tensor& input, Taker take) {
  inputs_.push_back(input);
  takers_.push_back(std::move(take));
}

void NamedGradients::compute() {
  if (outputs_.empty() || inputs_.empty()) return;
  std::vector<at::Tensor> gradients = torch::autograd::grad(outputs_, inputs_, d_outputs_, /*retain_graph=*/false,
                                                            /*create_graph=*/false, /*allow_unused=*/true);
  for (size_t i = 0; i < takers_.size(); ++i) takers_[i](gradients[i]);
}

}  // namespace moetune
