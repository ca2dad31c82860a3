// A Communicator over MPI: CPU tensors, host integers, and how NCCL groups find each other.
//
//   auto group = MpiCommunicator::split_world(color, key, "data");   // every rank of the job calls it
//   group->all_reduce_sum(tensor);                                   // tensor is final on return
//
// MPI's counts are 32-bit and it knows no 16-bit floats: larger tensors go in pieces, and bf16 and fp16 are reduced in
// fp32 and rounded once. Ordinary callers get their groups from Launch::make_group.
#pragma once

#include <memory>

#include "parallel/comm/communicator.h"

namespace moetune {

class MpiCommunicator final : public Communicator {
 public:
  /// Well below MPI's 2^31 - 1, and a multiple of every element size.
  static constexpr int64_t kMaxCount = int64_t{1} << 30;

  /// The group of the ranks that pass the same color (>= 0), ordered by key. All ranks of the job call it; MPI is
  /// running. One MPI call moves at most max_count bytes, or reduces at most max_count elements.
  static std::unique_ptr<MpiCommunicator> split_world(int color, int key, std::string name,
                                                      int64_t max_count = kMaxCount);
  /// Leaves the group (all ranks of it do). While an exception is under way it does not: the peers may never come.
  ~MpiCommunicator() override;

 private:
  struct Handle;
  MpiCommunicator(std::string name, int rank, int size, std::unique_ptr<Handle> handle, int64_t max_count);

  void do_all_reduce(const at::Tensor& tensor, ReduceOp op) override;
  void do_broadcast(const at::Tensor& tensor, int root) override;
  void do_all_gather(const at::Tensor& out, const at::Tensor& in) override;
  void do_reduce_scatter_sum(const at::Tensor& out, const at::Tensor& in) override;
  void do_all_to_all_v(const at::Tensor& out, const at::Tensor& in, const std::vector<int64_t>& recv_bytes,
                       const std::vector<int64_t>& send_bytes) override;
  void do_send(const at::Tensor& tensor, int to) override;
  void do_receive(const at::Tensor& tensor, int from) override;
  void do_wait_sent() override;
  void do_barrier() override;

  /// Throws RankLostError unless the MPI call succeeded.
  void check(int mpi_result, const char* operation, int64_t bytes) const;
  /// Bytes between this rank and one peer.
  struct Message {
    int peer;
    char* data;
    int64_t bytes;
  };
  /// Calls work(data, bytes) for the pieces of a tensor of at most max_count_ bytes.
  template <typename Work>
  void for_each_piece(const at::Tensor& tensor, const Work& work) const;
  /// Sends and receives all messages at once, each in pieces of at most max_count_ bytes.
  void exchange(const char* operation, const std::vector<Message>& receives, const std::vector<Message>& sends);

  std::unique_ptr<Handle> handle_;
  int64_t max_count_;
  int exceptions_at_birth_;
};

}  // namespace moetune
