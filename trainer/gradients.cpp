#include "trainer/gradients.h"

#include <cmath>

#include "parallel/base/error.h"
#include "trainer/replica_groups.h"

namespace moetune {

int64_t GradientReducer::bytes(int64_t elements, at::ScalarType compute) {
  // Joined in their own dtype; in fp64; squared.
  const int64_t size = static_cast<int64_t>(c10::elementSize(accumulate_dtype(compute)));
  return elements * (size + (size < 8 ? 8 : 0) + 8);
}

void GradientReducer::reduce(int64_t layer) {
  at::NoGradGuard no_grad;
  for (size_t kind = 0; kind < kKinds.size(); ++kind) {
    std::vector<Parameter*> alike;
    for (Parameter* parameter : parameters_.of_layer(layer)) {
      if (parameter->info().replicas == kKinds[kind]) alike.push_back(parameter);
    }
    reduce_group(alike, replica_group(mesh_, kKinds[kind]), squares_[kind]);
  }
}

void GradientReducer::reduce_group(const std::vector<Parameter*>& parameters, Communicator& replicas, at::Tensor& square_sum) {
  if (parameters.empty()) return;
  std::vector<at::Tensor> flat_parts;
  for (Parameter* parameter : parameters) flat_parts.push_back(parameter->gradient().flatten());
  at::Tensor flat = flat_parts.size() == 1 ? flat_parts[0] : at::cat(flat_parts);
  at::Tensor sum = flat.sum(at::kDouble);
  local_sum_ = local_sum_.defined() ? local_sum_ + sum : sum;
  replicas.all_reduce_sum(flat);
  int64_t first = 0;
  for (size_t i = 0; i < parameters.size() && flat_parts.size() > 1; ++i) {
    flat_parts[i].copy_(flat.narrow(0, first, flat_parts[i].numel()));
    first += flat_parts[i].numel();
  }
  at::Tensor squares = flat.to(at::kDouble).square().sum();
  square_sum = square_sum.defined() ? square_sum + squares : squares;
}

double GradientReducer::global_norm(int64_t step) {
  Communicator& world = mesh_.world();
  at::Tensor zero = at::zeros({1}, at::TensorOptions(at::kDouble).device(world.device()));
  auto take = [&](at::Tensor& value) {
    at::Tensor taken = value.defined() ? value.reshape({1}) : zero.clone();
    value = at::Tensor();
    return taken;
  };
  at::Tensor own_sum = take(local_sum_), all_squares = zero.clone();
  for (size_t kind = 0; kind < kKinds.size(); ++kind) {
    at::Tensor squares = take(squares_[kind]);
    if (Communicator* parts = parts_group(mesh_, kKinds[kind])) parts->all_reduce_sum(squares);
    all_squares.add_(squares);
  }
  at::Tensor own_sums = at::empty({world.size()}, own_sum.options());
  world.all_gather(own_sums, own_sum);
  own_sums = own_sums.cpu();
  for (int rank = 0; rank < world.size(); ++rank) {
    if (!std::isfinite(own_sums[rank].item<double>())) {
      throw NonFiniteError(str("step ", step, ": the gradient of rank ", rank, " is not finite; nothing was updated. Lower the learning "
                               "rate, or look at the data of this step"));
    }
  }
  const double norm = std::sqrt(all_squares.item<double>());
  if (!std::isfinite(norm)) throw NonFiniteError(str("step ", step, ": the gradient's norm is ", norm, "; nothing was updated"));
  return norm;
}

}  // namespace moetune
