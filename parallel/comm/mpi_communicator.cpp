#include "parallel/comm/mpi_communicator.h"

#include <ATen/ATen.h>
#include <mpi.h>

#include <algorithm>
#include <cstring>
#include <exception>

#include "parallel/base/error.h"

namespace moetune {
namespace {

MPI_Datatype mpi_type(at::ScalarType type) {
  switch (type) {
    case at::kDouble: return MPI_DOUBLE;
    case at::kFloat: return MPI_FLOAT;
    case at::kInt: return MPI_INT32_T;
    case at::kLong: return MPI_INT64_T;
    case at::kByte:
    case at::kBool: return MPI_UINT8_T;
    default: throw InternalError(str("MPI reduces no ", at::toString(type)));
  }
}

/// Pieces between the same two ranks arrive in the order they were sent, so they need no tags of their own.
constexpr int kTag = 0;

std::string error_text(int mpi_result) {
  char text[MPI_MAX_ERROR_STRING];
  int length = 0;
  MPI_Error_string(mpi_result, text, &length);
  return std::string(text, length);
}

}  // namespace

struct MpiCommunicator::Handle {
  /// A piece on its way, and the memory that it lies in.
  struct Sent {
    MPI_Request request;
    at::Tensor tensor;
  };
  MPI_Comm comm = MPI_COMM_NULL;
  std::vector<Sent> sent;
};

std::unique_ptr<MpiCommunicator> MpiCommunicator::split_world(int color, int key, std::string name, int64_t max_count) {
  MT_CHECK(color >= 0, "group ", name, ": color ", color);
  MT_CHECK(max_count >= 1 && max_count <= kMaxCount, "group ", name, ": max_count ", max_count);
  auto handle = std::make_unique<Handle>();
  const int result = MPI_Comm_split(MPI_COMM_WORLD, color, key, &handle->comm);
  if (result != MPI_SUCCESS) throw RankLostError(str("making group ", name, " failed: ", error_text(result)));
  // Errors come back as return codes, to be thrown with a place, instead of ending the process.
  MPI_Comm_set_errhandler(handle->comm, MPI_ERRORS_RETURN);
  int rank = 0;
  int size = 0;
  MPI_Comm_rank(handle->comm, &rank);
  MPI_Comm_size(handle->comm, &size);
  return std::unique_ptr<MpiCommunicator>(
      new MpiCommunicator(std::move(name), rank, size, std::move(handle), max_count));
}

MpiCommunicator::MpiCommunicator(std::string name, int rank, int size, std::unique_ptr<Handle> handle,
                                 int64_t max_count)
    : Communicator(std::move(name), rank, size, at::kCPU),
      handle_(std::move(handle)),
      max_count_(max_count),
      exceptions_at_birth_(std::uncaught_exceptions()) {}

MpiCommunicator::~MpiCommunicator() {
  int finalized = 0;
  MPI_Finalized(&finalized);
  if (finalized || std::uncaught_exceptions() > exceptions_at_birth_) {
    // MPI may still read what is on its way; the job ends.
    if (!finalized && !handle_->sent.empty()) static_cast<void>(handle_.release());
    return;
  }
  for (Handle::Sent& piece : handle_->sent) MPI_Wait(&piece.request, MPI_STATUS_IGNORE);
  MPI_Comm_free(&handle_->comm);
}

void MpiCommunicator::check(int mpi_result, const char* operation, int64_t bytes) const {
  if (mpi_result == MPI_SUCCESS) return;
  throw RankLostError(str(operation, " of ", bytes, " bytes on group ", name(), " (rank ", rank(), " of ", size(),
                          ") failed in MPI: ", error_text(mpi_result)));
}

void MpiCommunicator::do_barrier() { check(MPI_Barrier(handle_->comm), "barrier", 0); }

void MpiCommunicator::do_all_reduce(const at::Tensor& tensor, ReduceOp op) {
  if (tensor.scalar_type() == at::kBFloat16 || tensor.scalar_type() == at::kHalf) {
    const at::NoGradGuard no_grad;
    const at::Tensor wide = tensor.to(at::kFloat);
    do_all_reduce(wide, op);
    tensor.copy_(wide);
    return;
  }
  char* data = static_cast<char*>(tensor.data_ptr());
  const int64_t element_bytes = tensor.element_size();
  for (int64_t begin = 0; begin < tensor.numel(); begin += max_count_) {
    const int64_t count = std::min(max_count_, tensor.numel() - begin);
    check(MPI_Allreduce(MPI_IN_PLACE, data + begin * element_bytes, static_cast<int>(count),
                        mpi_type(tensor.scalar_type()), op == ReduceOp::kSum ? MPI_SUM : MPI_MAX, handle_->comm),
          "all_reduce", count * element_bytes);
  }
}

void MpiCommunicator::do_broadcast(const at::Tensor& tensor, int root) {
  char* data = static_cast<char*>(tensor.data_ptr());
  const int64_t bytes = tensor.nbytes();
  for (int64_t begin = 0; begin < bytes; begin += max_count_) {
    const int64_t count = std::min(max_count_, bytes - begin);
    check(MPI_Bcast(data + begin, static_cast<int>(count), MPI_BYTE, root, handle_->comm), "broadcast", count);
  }
}

void MpiCommunicator::do_all_gather(const at::Tensor& out, const at::Tensor& in) {
  char* out_data = static_cast<char*>(out.data_ptr());
  char* in_data = static_cast<char*>(in.data_ptr());
  const int64_t bytes = in.nbytes();
  // memmove: `in` may already lie in its place in `out`.
  std::memmove(out_data + rank() * bytes, in_data, bytes);
  std::vector<Message> receives;
  std::vector<Message> sends;
  for (int peer = 0; peer < size(); ++peer) {
    if (peer == rank()) continue;
    receives.push_back({peer, out_data + peer * bytes, bytes});
    sends.push_back({peer, in_data, bytes});
  }
  exchange("all_gather", receives, sends);
}

void MpiCommunicator::do_reduce_scatter_sum(const at::Tensor& out, const at::Tensor& in) {
  const at::NoGradGuard no_grad;
  if (in.scalar_type() == at::kBFloat16 || in.scalar_type() == at::kHalf) {
    const at::Tensor wide = at::empty(out.sizes(), out.options().dtype(at::kFloat));
    do_reduce_scatter_sum(wide, in.to(at::kFloat));
    out.copy_(wide);
    return;
  }
  // A piece is the same columns of every rank's part; all of them at once are `in` as it lies.
  const at::Tensor parts = in.view({size(), -1});
  const int64_t piece = std::max<int64_t>(1, max_count_ / size());
  for (int64_t begin = 0; begin < out.numel(); begin += piece) {
    const int64_t count = std::min(piece, out.numel() - begin);
    const at::Tensor sent = parts.narrow(1, begin, count).contiguous();
    check(MPI_Reduce_scatter_block(sent.data_ptr(), static_cast<char*>(out.data_ptr()) + begin * out.element_size(),
                                   static_cast<int>(count), mpi_type(in.scalar_type()), MPI_SUM, handle_->comm),
          "reduce_scatter", sent.nbytes());
  }
}

void MpiCommunicator::do_all_to_all_v(const at::Tensor& out, const at::Tensor& in,
                                      const std::vector<int64_t>& recv_bytes, const std::vector<int64_t>& send_bytes) {
  char* out_data = static_cast<char*>(out.data_ptr());
  char* in_data = static_cast<char*>(in.data_ptr());
  std::vector<Message> receives;
  std::vector<Message> sends;
  for (int peer = 0; peer < size(); ++peer) {
    if (peer != rank()) {
      receives.push_back({peer, out_data, recv_bytes[peer]});
      sends.push_back({peer, in_data, send_bytes[peer]});
    } else if (send_bytes[peer] > 0) {
      std::memcpy(out_data, in_data, send_bytes[peer]);
    }
    out_data += recv_bytes[peer];
    in_data += send_bytes[peer];
  }
  exchange("all_to_all_v", receives, sends);
}

template <typename Work>
void MpiCommunicator::for_each_piece(const at::Tensor& tensor, const Work& work) const {
  char* data = static_cast<char*>(tensor.data_ptr());
  const auto bytes = static_cast<int64_t>(tensor.nbytes());
  for (int64_t begin = 0; begin < bytes; begin += max_count_) {
    work(data + begin, static_cast<int>(std::min(max_count_, bytes - begin)));
  }
}

void MpiCommunicator::do_send(const at::Tensor& tensor, int to) {
  std::vector<Handle::Sent>& sent = handle_->sent;
  std::erase_if(sent, [&](Handle::Sent& piece) {
    int left = 0;
    check(MPI_Test(&piece.request, &left, MPI_STATUS_IGNORE), "send", static_cast<int64_t>(piece.tensor.nbytes()));
    return left != 0;
  });
  for_each_piece(tensor, [&](char* data, int bytes) {
    sent.push_back({MPI_REQUEST_NULL, tensor});
    check(MPI_Isend(data, bytes, MPI_BYTE, to, kTag, handle_->comm, &sent.back().request), "send", bytes);
  });
}

void MpiCommunicator::do_receive(const at::Tensor& tensor, int from) {
  for_each_piece(tensor, [&](char* data, int bytes) {
    MPI_Status status;
    const int result = MPI_Recv(data, bytes, MPI_BYTE, from, kTag, handle_->comm, &status);
    MT_CHECK(result != MPI_ERR_TRUNCATE, "receive on group ", name(), ": rank ", from, " sent rank ", rank(),
             " more than the ", bytes, " bytes it expected");
    check(result, "receive", bytes);
    int received = 0;
    MPI_Get_count(&status, MPI_BYTE, &received);
    MT_CHECK(received == bytes, "receive on group ", name(), ": rank ", from, " sent rank ", rank(), " ", received,
             " bytes where it expected ", bytes);
  });
}

void MpiCommunicator::do_wait_sent() {
  for (Handle::Sent& piece : handle_->sent) {
    check(MPI_Wait(&piece.request, MPI_STATUS_IGNORE), "send", static_cast<int64_t>(piece.tensor.nbytes()));
  }
  handle_->sent.clear();
}

void MpiCommunicator::exchange(const char* operation, const std::vector<Message>& receives,
                               const std::vector<Message>& sends) {
  std::vector<MPI_Request> requests;
  std::vector<Message> expected;
  const auto post = [&](const std::vector<Message>& messages, const auto& start) {
    for (const Message& message : messages) {
      for (int64_t begin = 0; begin < message.bytes; begin += max_count_) {
        const int64_t count = std::min(max_count_, message.bytes - begin);
        requests.emplace_back();
        expected.push_back({message.peer, message.data + begin, count});
        check(start(expected.back(), &requests.back()), operation, count);
      }
    }
  };
  post(receives, [&](const Message& piece, MPI_Request* request) {
    return MPI_Irecv(piece.data, static_cast<int>(piece.bytes), MPI_BYTE, piece.peer, kTag, handle_->comm, request);
  });
  const size_t num_receives = requests.size();
  post(sends, [&](const Message& piece, MPI_Request* request) {
    return MPI_Isend(piece.data, static_cast<int>(piece.bytes), MPI_BYTE, piece.peer, kTag, handle_->comm, request);
  });

  std::vector<MPI_Status> statuses(requests.size());
  const int result = MPI_Waitall(static_cast<int>(requests.size()), requests.data(), statuses.data());
  for (size_t i = 0; i < requests.size(); ++i) {
    const int piece_result = result == MPI_ERR_IN_STATUS ? statuses[i].MPI_ERROR : result;
    MT_CHECK(piece_result != MPI_ERR_TRUNCATE, operation, " on group ", name(), ": rank ", expected[i].peer,
             " sent rank ", rank(), " more than the ", expected[i].bytes, " bytes it expected");
    check(piece_result, operation, expected[i].bytes);
    if (i >= num_receives) continue;
    int received = 0;
    MPI_Get_count(&statuses[i], MPI_BYTE, &received);
    MT_CHECK(received == expected[i].bytes, operation, " on group ", name(), ": rank ", expected[i].peer, " sent rank ",
             rank(), " ", received, " bytes where it expected ", expected[i].bytes);
  }
}

}  // namespace moetune
