// Stands for the other ranks of a group where only sizes and places matter: nothing is sent, every rank holds what this
// one does.
//
//   StandInGroup group(/*rank=*/1, /*size=*/4);
//   TensorAxis axis(group);
#pragma once

#include "parallel/comm/communicator.h"

namespace moetune {

class StandInGroup final : public Communicator {
 public:
  StandInGroup(int rank, int size) : Communicator("stand-in", rank, size, at::kCPU) {}
  void do_barrier() override {}

 private:
  void do_all_reduce(const at::Tensor&, ReduceOp) override {}
  void do_broadcast(const at::Tensor&, int) override {}
  void do_all_gather(const at::Tensor& out, const at::Tensor& in) override {
    out.view({size(), -1}).copy_(in.view({1, -1}));
  }
  void do_reduce_scatter_sum(const at::Tensor& out, const at::Tensor& in) override {
    out.view({-1}).copy_(in.view({size(), -1})[rank()]);
  }
  void do_all_to_all_v(const at::Tensor& out, const at::Tensor&, const std::vector<int64_t>&,
                       const std::vector<int64_t>&) override {
    out.zero_();
  }
};

}  // namespace moetune
