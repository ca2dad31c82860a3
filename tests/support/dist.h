// What a test in tests/dist/ sees of the job that runs it. dist_main.cpp starts the Launch; every rank runs every test
// in the same order. The first failed assertion on any rank ends the job, so no rank waits for one that gave up.
//
//   TEST_CASE("sums") {
//     auto group = test_launch().make_group(0, test_launch().rank(), "world");
//     const at::Tensor value = at::full({3}, group->rank(), test_options(at::kFloat));   // on the job's device
//     group->all_reduce_sum(value);
//     CHECK(to_vector<float>(value) == ...);                                              // waits, copies to the host
//   }
#pragma once

#include <ATen/ATen.h>

#include <vector>

#include "parallel/comm/launch.h"

namespace moetune {

/// The Launch of this process, on the device that `--device` chose.
Launch& test_launch();

/// For tensors on the device of the job.
inline at::TensorOptions test_options(at::ScalarType type) {
  return at::TensorOptions().dtype(type).device(test_launch().device());
}

/// A tensor on the device of the job from host values that its dtype represents exactly; shape [values].
template <typename Value>
at::Tensor test_tensor(const std::vector<Value>& values, at::ScalarType type) {
  std::vector<double> doubles(values.begin(), values.end());
  return at::tensor(doubles, at::kDouble).to(type).to(test_launch().device());
}

/// The elements in order, on the host.
template <typename Value>
std::vector<Value> to_vector(const at::Tensor& tensor) {
  const at::Tensor host = tensor.to(at::kCPU).to(c10::CppTypeToScalarType<Value>::value).contiguous();
  return {host.const_data_ptr<Value>(), host.const_data_ptr<Value>() + host.numel()};
}

}  // namespace moetune
