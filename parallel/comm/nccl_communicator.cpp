#include "parallel/comm/nccl_communicator.h"

#include <ATen/ATen.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#include <cuda_runtime.h>
#include <nccl.h>

#include <cstring>
#include <exception>

#include "parallel/base/error.h"
#include "parallel/watch/nccl_watch.h"

namespace moetune {
namespace {

ncclDataType_t nccl_type(at::ScalarType type) {
  switch (type) {
    case at::kDouble: return ncclFloat64;
    case at::kFloat: return ncclFloat32;
    case at::kBFloat16: return ncclBfloat16;
    case at::kHalf: return ncclFloat16;
    case at::kInt: return ncclInt32;
    case at::kLong: return ncclInt64;
    case at::kByte:
    case at::kBool: return ncclUint8;
    default: throw InternalError(str("NCCL reduces no ", at::toString(type)));
  }
}

cudaStream_t current_stream(const at::Device& device) {
  return c10::cuda::getCurrentCUDAStream(device.index()).stream();
}

}  // namespace

struct NcclCommunicator::Handle {
  ncclComm_t comm = nullptr;
};

NcclCommunicator::NcclCommunicator(std::unique_ptr<MpiCommunicator> host, at::Device device, NcclWatch* watch)
    : Communicator(host->name(), host->rank(), host->size(), device),
      host_(std::move(host)),
      handle_(std::make_unique<Handle>()),
      watch_(watch),
      exceptions_at_birth_(std::uncaught_exceptions()) {
  MT_CHECK(device.is_cuda() && device.has_index(), "NCCL group ", name(), " on ", device);
  const c10::cuda::CUDAGuard guard(device);
  ncclUniqueId id{};
  int id_result = ncclSuccess;
  if (rank() == 0) id_result = ncclGetUniqueId(&id);
  const at::Tensor id_bytes = at::empty({NCCL_UNIQUE_ID_BYTES}, at::kByte);
  std::memcpy(id_bytes.data_ptr(), id.internal, NCCL_UNIQUE_ID_BYTES);
  host_->broadcast(id_bytes, 0);
  std::memcpy(id.internal, id_bytes.data_ptr(), NCCL_UNIQUE_ID_BYTES);
  check(id_result, "ncclGetUniqueId", NCCL_UNIQUE_ID_BYTES);
  check(ncclCommInitRank(&handle_->comm, size(), id, rank()), "ncclCommInitRank", 0);
  if (watch_ != nullptr) watch_->add(handle_->comm, name());
}

NcclCommunicator::~NcclCommunicator() {
  if (handle_->comm == nullptr) return;
  if (watch_ != nullptr) watch_->remove(handle_->comm);
  if (std::uncaught_exceptions() == exceptions_at_birth_) {
    ncclCommDestroy(handle_->comm);
  } else {
    ncclCommAbort(handle_->comm);
  }
}

void NcclCommunicator::check(int nccl_result, const char* operation, int64_t bytes) const {
  if (nccl_result == ncclSuccess) return;
  throw RankLostError(str(operation, " of ", bytes, " bytes on group ", name(), " (rank ", rank(), " of ", size(), ", ",
                          device().str(),
                          ") failed in NCCL: ", ncclGetErrorString(static_cast<ncclResult_t>(nccl_result)), ": ",
                          ncclGetLastError(handle_->comm), "; NCCL_DEBUG=WARN says more"));
}

void NcclCommunicator::watch_enqueued() {
  if (watch_ != nullptr && progress() != nullptr) watch_->enqueued(progress()->under_way(), current_stream(device()));
}

void NcclCommunicator::do_all_reduce(const at::Tensor& tensor, ReduceOp op) {
  const c10::cuda::CUDAGuard guard(device());
  check(ncclAllReduce(tensor.data_ptr(), tensor.data_ptr(), tensor.numel(), nccl_type(tensor.scalar_type()),
                      op == ReduceOp::kSum ? ncclSum : ncclMax, handle_->comm, current_stream(device())),
        "all_reduce", tensor.nbytes());
  watch_enqueued();
}

void NcclCommunicator::do_broadcast(const at::Tensor& tensor, int root) {
  const c10::cuda::CUDAGuard guard(device());
  check(ncclBroadcast(tensor.data_ptr(), tensor.data_ptr(), tensor.nbytes(), ncclUint8, root, handle_->comm,
                      current_stream(device())),
        "broadcast", tensor.nbytes());
  watch_enqueued();
}

void NcclCommunicator::do_all_gather(const at::Tensor& out, const at::Tensor& in) {
  const c10::cuda::CUDAGuard guard(device());
  check(ncclAllGather(in.data_ptr(), out.data_ptr(), in.nbytes(), ncclUint8, handle_->comm, current_stream(device())),
        "all_gather", in.nbytes());
  watch_enqueued();
}

void NcclCommunicator::do_reduce_scatter_sum(const at::Tensor& out, const at::Tensor& in) {
  const c10::cuda::CUDAGuard guard(device());
  check(ncclReduceScatter(in.data_ptr(), out.data_ptr(), out.numel(), nccl_type(in.scalar_type()), ncclSum,
                          handle_->comm, current_stream(device())),
        "reduce_scatter_sum", in.nbytes());
  watch_enqueued();
}

void NcclCommunicator::do_all_to_all_v(const at::Tensor& out, const at::Tensor& in,
                                       const std::vector<int64_t>& recv_bytes, const std::vector<int64_t>& send_bytes) {
  const c10::cuda::CUDAGuard guard(device());
  const cudaStream_t stream = current_stream(device());
  char* out_data = static_cast<char*>(out.data_ptr());
  char* in_data = static_cast<char*>(in.data_ptr());
  char* own_out = nullptr;
  char* own_in = nullptr;
  ncclResult_t result = ncclGroupStart();
  check(result, "all_to_all_v", in.nbytes());
  for (int peer = 0; peer < size(); ++peer) {
    if (peer == rank()) {
      own_out = out_data;
      own_in = in_data;
    } else {
      if (result == ncclSuccess && send_bytes[peer] > 0) {
        result = ncclSend(in_data, send_bytes[peer], ncclUint8, peer, handle_->comm, stream);
      }
      if (result == ncclSuccess && recv_bytes[peer] > 0) {
        result = ncclRecv(out_data, recv_bytes[peer], ncclUint8, peer, handle_->comm, stream);
      }
    }
    in_data += send_bytes[peer];
    out_data += recv_bytes[peer];
  }
  // A group that was started must be ended, failed or not; the first failure counts.
  const ncclResult_t end_result = ncclGroupEnd();
  check(result, "all_to_all_v", in.nbytes());
  check(end_result, "all_to_all_v", in.nbytes());
  watch_enqueued();
  if (send_bytes[rank()] > 0) {
    C10_CUDA_CHECK(cudaMemcpyAsync(own_out, own_in, send_bytes[rank()], cudaMemcpyDeviceToDevice, stream));
  }
}

void NcclCommunicator::do_send(const at::Tensor& tensor, int to) {
  const c10::cuda::CUDAGuard guard(device());
  check(ncclSend(tensor.data_ptr(), tensor.nbytes(), ncclUint8, to, handle_->comm, current_stream(device())), "send",
        tensor.nbytes());
  watch_enqueued();
}

void NcclCommunicator::do_receive(const at::Tensor& tensor, int from) {
  const c10::cuda::CUDAGuard guard(device());
  check(ncclRecv(tensor.data_ptr(), tensor.nbytes(), ncclUint8, from, handle_->comm, current_stream(device())),
        "receive", tensor.nbytes());
  watch_enqueued();
}

}  // namespace moetune
