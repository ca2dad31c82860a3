#include "parallel/comm/communicator.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <numeric>

#include "parallel/base/error.h"

namespace moetune {
namespace {

bool can_sum(at::ScalarType type) {
  switch (type) {
    case at::kDouble:
    case at::kFloat:
    case at::kBFloat16:
    case at::kHalf:
    case at::kInt:
    case at::kLong: return true;
    default: return false;
  }
}

bool can_max(at::ScalarType type) { return can_sum(type) || type == at::kByte || type == at::kBool; }

int64_t sum(const std::vector<int64_t>& values) { return std::accumulate(values.begin(), values.end(), int64_t{0}); }

bool any_negative(const std::vector<int64_t>& values) {
  return std::any_of(values.begin(), values.end(), [](int64_t value) { return value < 0; });
}

std::vector<int64_t> times(std::vector<int64_t> values, int64_t factor) {
  for (int64_t& value : values) value *= factor;
  return values;
}

}  // namespace

void Communicator::check_tensor(const char* operation, const at::Tensor& tensor) const {
  MT_CHECK(tensor.defined(), operation, " on group ", name_, ": the tensor is undefined");
  MT_CHECK(tensor.is_contiguous(), operation, " on group ", name_, ": the tensor ", tensor.sizes(),
           " is not contiguous");
  MT_CHECK(tensor.device() == device_, operation, " on group ", name_, " of ", device_, ": the tensor is on ",
           tensor.device());
}

void Communicator::all_reduce(const char* operation, const at::Tensor& tensor, ReduceOp op) {
  check_tensor(operation, tensor);
  const at::ScalarType type = tensor.scalar_type();
  MT_CHECK(op == ReduceOp::kSum ? can_sum(type) : can_max(type), operation, " on group ", name_, ": dtype ",
           at::toString(type), " has no such reduction");
  if (tensor.numel() == 0) return;
  const auto call = enter(operation, static_cast<int64_t>(tensor.nbytes()));
  do_all_reduce(tensor, op);
  bytes_sent_ += 2 * (size_ - 1) * static_cast<int64_t>(tensor.nbytes()) / size_;
}

void Communicator::all_reduce_sum(const at::Tensor& tensor) { all_reduce("all_reduce_sum", tensor, ReduceOp::kSum); }

void Communicator::all_reduce_max(const at::Tensor& tensor) { all_reduce("all_reduce_max", tensor, ReduceOp::kMax); }

void Communicator::broadcast(const at::Tensor& tensor, int root) {
  check_tensor("broadcast", tensor);
  MT_CHECK(root >= 0 && root < size_, "broadcast on group ", name_, ": root ", root, " of ", size_, " ranks");
  if (tensor.numel() == 0) return;
  const auto call = enter("broadcast", static_cast<int64_t>(tensor.nbytes()));
  do_broadcast(tensor, root);
  if (rank_ == root) bytes_sent_ += (size_ - 1) * static_cast<int64_t>(tensor.nbytes());
}

void Communicator::all_gather(const at::Tensor& out, const at::Tensor& in) {
  check_tensor("all_gather", out);
  check_tensor("all_gather", in);
  MT_CHECK(out.scalar_type() == in.scalar_type() && out.numel() == size_ * in.numel(), "all_gather on group ", name_,
           " of ", size_, ": out is ", at::toString(out.scalar_type()), " ", out.sizes(), ", in is ",
           at::toString(in.scalar_type()), " ", in.sizes());
  if (in.numel() == 0) return;
  const auto call = enter("all_gather", static_cast<int64_t>(out.nbytes()));
  do_all_gather(out, in);
  bytes_sent_ += (size_ - 1) * static_cast<int64_t>(in.nbytes());
}

void Communicator::reduce_scatter_sum(const at::Tensor& out, const at::Tensor& in) {
  check_tensor("reduce_scatter_sum", out);
  check_tensor("reduce_scatter_sum", in);
  MT_CHECK(can_sum(in.scalar_type()) && out.scalar_type() == in.scalar_type() && in.numel() == size_ * out.numel(),
           "reduce_scatter_sum on group ", name_, " of ", size_, ": out is ", at::toString(out.scalar_type()), " ",
           out.sizes(), ", in is ", at::toString(in.scalar_type()), " ", in.sizes());
  if (in.numel() == 0) return;
  const auto call = enter("reduce_scatter_sum", static_cast<int64_t>(in.nbytes()));
  do_reduce_scatter_sum(out, in);
  bytes_sent_ += (size_ - 1) * static_cast<int64_t>(out.nbytes());
}

void Communicator::all_to_all_v(const at::Tensor& out, const at::Tensor& in, const std::vector<int64_t>& recv_counts,
                                const std::vector<int64_t>& send_counts) {
  check_tensor("all_to_all_v", out);
  check_tensor("all_to_all_v", in);
  MT_CHECK(out.dim() >= 1 && in.dim() >= 1 && out.sizes().slice(1) == in.sizes().slice(1) &&
               out.scalar_type() == in.scalar_type(),
           "all_to_all_v on group ", name_, ": out is ", at::toString(out.scalar_type()), " ", out.sizes(), ", in is ",
           at::toString(in.scalar_type()), " ", in.sizes());
  MT_CHECK(recv_counts.size() == static_cast<size_t>(size_) && send_counts.size() == static_cast<size_t>(size_),
           "all_to_all_v on group ", name_, " of ", size_, ": ", recv_counts.size(), " receive and ",
           send_counts.size(), " send counts");
  MT_CHECK(!any_negative(recv_counts) && !any_negative(send_counts), "all_to_all_v on group ", name_,
           ": receive counts ", at::IntArrayRef(recv_counts), ", send counts ", at::IntArrayRef(send_counts));
  MT_CHECK(sum(recv_counts) == out.size(0) && sum(send_counts) == in.size(0), "all_to_all_v on group ", name_,
           ": counts say ", sum(recv_counts), " rows in and ", sum(send_counts), " rows out, the tensors hold ",
           out.size(0), " and ", in.size(0));
  MT_CHECK(recv_counts[rank_] == send_counts[rank_], "all_to_all_v on group ", name_, ": rank ", rank_,
           " sends itself ", send_counts[rank_], " rows and expects ", recv_counts[rank_]);
  const int64_t row_bytes = c10::multiply_integers(in.sizes().slice(1)) * static_cast<int64_t>(in.element_size());
  const auto call = enter("all_to_all_v", static_cast<int64_t>(in.nbytes() + out.nbytes()));
  do_all_to_all_v(out, in, times(recv_counts, row_bytes), times(send_counts, row_bytes));
  bytes_sent_ += (in.size(0) - send_counts[rank_]) * row_bytes;
}

void Communicator::check_peer(const char* operation, const at::Tensor& tensor, int peer) const {
  check_tensor(operation, tensor);
  MT_CHECK(peer >= 0 && peer < size_ && peer != rank_, operation, " on group ", name_, " of ", size_, ": rank ", rank_,
           " and rank ", peer);
}

void Communicator::send(const at::Tensor& tensor, int to) {
  check_peer("send", tensor, to);
  if (tensor.numel() == 0) return;
  const auto call = enter("send", static_cast<int64_t>(tensor.nbytes()));
  do_send(tensor, to);
  bytes_sent_ += static_cast<int64_t>(tensor.nbytes());
}

void Communicator::receive(const at::Tensor& tensor, int from) {
  check_peer("receive", tensor, from);
  if (tensor.numel() == 0) return;
  const auto call = enter("receive", static_cast<int64_t>(tensor.nbytes()));
  do_receive(tensor, from);
}

void Communicator::do_send(const at::Tensor&, int to) {
  throw InternalError(str("group ", name_, " has no way to send to rank ", to));
}

void Communicator::do_receive(const at::Tensor&, int from) {
  throw InternalError(str("group ", name_, " has no way to receive from rank ", from));
}

void Communicator::barrier() {
  const auto call = enter("barrier", 0);
  do_barrier();
}

void LocalCommunicator::do_all_gather(const at::Tensor& out, const at::Tensor& in) { out.view(-1).copy_(in.view(-1)); }

void LocalCommunicator::do_reduce_scatter_sum(const at::Tensor& out, const at::Tensor& in) {
  out.view(-1).copy_(in.view(-1));
}

void LocalCommunicator::do_all_to_all_v(const at::Tensor& out, const at::Tensor& in, const std::vector<int64_t>&,
                                        const std::vector<int64_t>&) {
  out.copy_(in);
}

}  // namespace moetune
