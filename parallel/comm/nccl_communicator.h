// A Communicator over NCCL: tensors of one GPU per rank. It keeps the MPI group of the same ranks for what lives on the
// host: the NCCL id at birth, counts, barriers.
//
//   auto host = MpiCommunicator::split_world(color, key, "ep");
//   NcclCommunicator group(std::move(host), at::Device(at::kCUDA, local_rank));   // every rank of the group
//   group.all_reduce_sum(tensor);                                 // enqueued on the current stream of the device
//
// Ordinary callers get their groups from Launch::make_group.
#pragma once

#include <memory>

#include "parallel/comm/mpi_communicator.h"

namespace moetune {

class NcclWatch;

class NcclCommunicator final : public Communicator {
 public:
  /// Joins the ranks of `host`, each with a GPU of its own. All of them construct it at the same time; waits for them.
  /// `watch` outlives the group, or is null.
  NcclCommunicator(std::unique_ptr<MpiCommunicator> host, at::Device device, NcclWatch* watch = nullptr);
  /// Waits for what was enqueued and leaves. While an exception is under way it aborts instead: a kernel may be waiting
  /// for a peer that never comes.
  ~NcclCommunicator() override;

 private:
  struct Handle;

  void do_all_reduce(const at::Tensor& tensor, ReduceOp op) override;
  void do_broadcast(const at::Tensor& tensor, int root) override;
  void do_all_gather(const at::Tensor& out, const at::Tensor& in) override;
  void do_reduce_scatter_sum(const at::Tensor& out, const at::Tensor& in) override;
  void do_all_to_all_v(const at::Tensor& out, const at::Tensor& in, const std::vector<int64_t>& recv_bytes,
                       const std::vector<int64_t>& send_bytes) override;
  void do_send(const at::Tensor& tensor, int to) override;
  void do_receive(const at::Tensor& tensor, int from) override;
  void do_barrier() override { host_->barrier(); }

  /// The watch looks when what was enqueued on the current stream is finished.
  void watch_enqueued();
  /// Throws RankLostError unless the NCCL call (its result as an integer) succeeded.
  void check(int nccl_result, const char* operation, int64_t bytes) const;

  std::unique_ptr<MpiCommunicator> host_;
  std::unique_ptr<Handle> handle_;
  NcclWatch* watch_;
  int exceptions_at_birth_;
};

}  // namespace moetune
