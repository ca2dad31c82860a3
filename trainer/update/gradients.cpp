#include "trainer/update/gradients.h"

#include <algorithm>
#include <cmath>

#include "parallel/base/error.h"
#include "trainer/update/replica_groups.h"

namespace moetune {
namespace {

constexpr int64_t kPiece = int64_t{1} << 22;  // 32 MiB in fp64

/// Sum of the numbers in fp64, or of their squares, a piece at a time: a layer may have a billion of them.
at::Tensor wide_sum(const at::Tensor& flat, bool of_squares) {
  at::Tensor sum = at::zeros({}, flat.options().dtype(at::kDouble));
  for (int64_t first = 0; first < flat.numel(); first += kPiece) {
    const at::Tensor piece = flat.narrow(0, first, std::min(kPiece, flat.numel() - first)).to(at::kDouble);
    sum.add_(of_squares ? piece.square().sum() : piece.sum());
  }
  return sum;
}

}  // namespace

GradientReducer::GradientReducer(const Partition& partition, Mesh& mesh)
    : partition_(partition), mesh_(mesh), gradients_(partition.host_shards(partition.wide_dtype())) {}

int64_t GradientReducer::bytes(int64_t elements, int64_t ranks, at::ScalarType compute) {
  const int64_t size = static_cast<int64_t>(c10::elementSize(accumulate_dtype(compute)));
  const int64_t flat = elements * size,
                shard = ranks > 1 ? Partition::shard_numbers(elements, ranks, Role::kWeight) * size : 0;
  // Rounded up as weights' shards are; adapters' are a little less.
  // The gradients are free before the shard and the squares of a piece in fp64 come.
  return flat + std::max<int64_t>(0, shard + 2 * 8 * std::min(elements, kPiece) - flat);
}

void GradientReducer::reduce(LayerId layer) {
  at::NoGradGuard no_grad;
  for (const size_t index : partition_.of_layer(layer)) reduce_group(index);
}

void GradientReducer::reduce_group(size_t index) {
  const FlatGroup& group = partition_.groups()[index];
  // None of the experts that train lie here, nor on the ranks that hold what this one does.
  if (group.flat_size() == 0) return;
  const at::TensorOptions options = gradients_[index].options().device(partition_.device());
  at::Tensor flat = at::empty({group.flat_size()}, options);
  int64_t end = 0;
  for (const FlatGroup::Member& member : group.members()) {
    flat.narrow(0, end, member.first - end).zero_();
    at::Tensor place = FlatGroup::view(flat, member);
    member.parameter->has_gradient() ? place.copy_(member.parameter->gradient()) : place.zero_();
    member.parameter->clear_gradient();
    end = member.first + member.parameter->numel();
  }
  flat.narrow(0, end, flat.numel() - end).zero_();
  at::Tensor sum = wide_sum(flat, /*of_squares=*/false);
  local_sum_ = local_sum_.defined() ? local_sum_ + sum : sum;
  at::Tensor own = flat;
  if (group.ranks().size() > 1) {
    own = at::empty({group.shard_size()}, options);
    group.ranks().reduce_scatter_sum(own, flat);
  }
  // Behind it: both stages then go on from the same bits.
  if (group.on_first_and_last_stage()) mesh_.ends().all_reduce_sum(own);
  if (!group.on_first_and_last_stage() || mesh_.here().pp == 0) {
    at::Tensor squares = wide_sum(own, /*of_squares=*/true);
    squares_ = squares_.defined() ? squares_ + squares : squares;
  }
  // On the compute stream: done when global_norm() has waited for it.
  gradients_[index].copy_(own, /*non_blocking=*/true);
}

void GradientReducer::forget() { local_sum_ = squares_ = at::Tensor(); }

double GradientReducer::global_norm(int64_t step) {
  Communicator& world = mesh_.world();
  const at::TensorOptions options = at::TensorOptions(at::kDouble).device(world.device());
  const auto or_zero = [&](const at::Tensor& sum) { return sum.defined() ? sum : at::zeros({}, options); };
  const at::Tensor own = at::stack({or_zero(local_sum_), or_zero(squares_)});
  forget();
  at::Tensor all = at::empty({world.size(), 2}, options);
  world.all_gather(all, own);
  all = all.cpu();
  double squares = 0.0;
  for (int rank = 0; rank < world.size(); ++rank) {
    if (!std::isfinite(all[rank][0].item<double>())) {
      throw NonFiniteError(str("step ", step, ": the gradient of rank ", rank,
                               " is not finite; nothing was updated. Lower the learning "
                               "rate, or look at the data of this step"));
    }
    squares += all[rank][1].item<double>();
  }
  const double norm = std::sqrt(squares);
  if (!std::isfinite(norm)) {
    throw NonFiniteError(str("step ", step, ": the gradient's norm is ", norm, "; nothing was updated"));
  }
  return norm;
}

}  // namespace moetune
