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

GradientReducer::GradientReducer(const Partition& partition, Mesh& mesh, SlabTier tier)
    : partition_(partition), mesh_(mesh), copies_(partition.device()) {
  gradients_ = partition.shards(partition.wide_dtype(), tier);
  if (tier == SlabTier::kDevice || !partition.device().is_cuda()) return;
  int64_t longest = 0;
  for (const FlatGroup& group : partition.groups()) longest = std::max(longest, group.shard_size());
  leaving_ = at::empty({longest}, at::TensorOptions(partition.wide_dtype()).device(partition.device()));
}

int64_t GradientReducer::sum_bytes(int64_t shard_numbers, at::ScalarType compute) {
  return shard_numbers * static_cast<int64_t>(c10::elementSize(accumulate_dtype(compute)));
}

int64_t GradientReducer::bytes(int64_t elements, int64_t ranks, at::ScalarType compute) {
  const int64_t gradients = sum_bytes(elements, compute), flat = ranks > 1 ? gradients : 0;
  // The gradients are free before the squares of a piece in fp64 come.
  return flat + std::max<int64_t>(0, 2 * 8 * std::min(elements, kPiece) - gradients);
}

void GradientReducer::reduce(LayerId layer) {
  at::NoGradGuard no_grad;
  for (const size_t index : partition_.of_layer(layer)) reduce_group(index);
}

void GradientReducer::reduce_group(size_t index) {
  const FlatGroup& group = partition_.groups()[index];
  // None of the experts that train lie here, nor on the ranks that hold what this one does.
  if (group.flat_size() == 0) return;
  at::Tensor own = leaving_.defined() ? leaving_.narrow(0, 0, group.shard_size()) : gradients_[index];
  left_.hold_current();
  at::Tensor flat = group.ranks().size() > 1 ? at::empty({group.flat_size()}, own.options()) : own;
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
  if (group.ranks().size() > 1) group.ranks().reduce_scatter_sum(own, flat);
  // Behind it: both stages then go on from the same bits.
  if (group.on_first_and_last_stage()) mesh_.ends().all_reduce_sum(own);
  if (!group.on_first_and_last_stage() || mesh_.here().pp == 0) {
    at::Tensor squares = wide_sum(own, /*of_squares=*/true);
    squares_ = squares_.defined() ? squares_ + squares : squares;
  }
  if (!leaving_.defined()) return;
  left_ = copies_.run(StreamPoint::of_current(partition_.device()),
                      [&] { gradients_[index].copy_(own, /*non_blocking=*/true); });
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
  left_.hold_current();
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
