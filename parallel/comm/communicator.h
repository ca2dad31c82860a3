// Collectives over one group of ranks, the same on CPUs (MPI) and on GPUs (NCCL).
//
//   std::unique_ptr<Communicator> group = launch.make_group(color, key, "ep");   // every rank of the job
//   group->all_to_all_v(rows_out, rows_in, recv_counts, send_counts);            // rows of dim 0
//   group->all_reduce_sum(gradient);                                             // in place
//
// For every collective: all ranks of the group call it, in the same order, from one thread. MPI returns when the
// tensors are final; NCCL enqueues on the current CUDA stream of device() and returns, so the host must not read the
// result before that stream has been waited for, and a tensor of another stream needs record_stream. Tensors are
// contiguous, on device(), and may have zero elements. Broken preconditions throw InternalError before anything is
// sent; a failing transport throws RankLostError, which names operation, group and size.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "parallel/watch/rank_progress.h"

namespace moetune {

class Communicator {
 public:
  virtual ~Communicator() = default;
  Communicator(const Communicator&) = delete;
  Communicator& operator=(const Communicator&) = delete;

  /// This rank's place in the group, 0 .. size() - 1.
  int rank() const { return rank_; }
  int size() const { return size_; }
  /// What messages call the group.
  const std::string& name() const { return name_; }
  /// Where tensors of this group live.
  at::Device device() const { return device_; }

  /// tensor := sum over the ranks, in place; the same shape everywhere, bitwise the same result everywhere. fp64, fp32,
  /// bf16, fp16, int32, int64. MPI sums 16-bit floats in fp32 and rounds once; NCCL may round at every hop.
  void all_reduce_sum(const at::Tensor& tensor);
  /// tensor := maximum over the ranks, in place; also uint8, and bool as "any". A NaN may or may not survive: look for
  /// non-finite numbers with a sum.
  void all_reduce_max(const at::Tensor& tensor);
  /// tensor := that of rank `root`, in place; any dtype, the same shape everywhere.
  void broadcast(const at::Tensor& tensor, int root);
  /// out := the `in` of rank 0, 1, ... one after the other; out has size() times the elements of `in`, which has the
  /// same shape everywhere and may be this rank's part of `out` itself. Any dtype.
  void all_gather(const at::Tensor& out, const at::Tensor& in);
  /// out := this rank's part of the sum of `in` over the ranks: `in` has size() times the elements of `out`, the part
  /// of rank 0 first; the same shape everywhere. `out` and `in` do not overlap. dtypes and rounding as all_reduce_sum.
  void reduce_scatter_sum(const at::Tensor& out, const at::Tensor& in);
  /// Rows of dim 0 change hands. `in` holds send_counts[r] rows for rank r, in the order of the ranks; `out` gets
  /// recv_counts[r] rows from rank r. Counts are host integers, zero allowed; trailing dims and dtype are those of `in`
  /// everywhere; any dtype. `out` and `in` do not overlap. recv_counts[r] here must be send_counts[rank()] there:
  /// MPI reports a difference (or waits for ever where only one side is zero), NCCL does not notice one.
  void all_to_all_v(const at::Tensor& out, const at::Tensor& in, const std::vector<int64_t>& recv_counts,
                    const std::vector<int64_t>& send_counts);
  /// To rank `to` alone, which receives as many bytes; messages from one rank to another come in their order. Any
  /// dtype; not collective. May return before they have left: the memory is held here, and must stay as it is until
  /// wait_sent() on MPI, on NCCL until the current stream is through with the send, which may wait for the receiver.
  void send(const at::Tensor& tensor, int to);
  /// tensor := what rank `from` sent next; as many bytes.
  void receive(const at::Tensor& tensor, int from);
  /// MPI: all that was sent has left. NCCL: nothing; streams keep the order.
  void wait_sent() { do_wait_sent(); }
  /// Returns when the host of every rank has come here. Does not wait for any CUDA stream.
  void barrier();

  /// Payload bytes from this rank to others so far, whatever the backend sends on the wire: all_to_all_v what goes to
  /// others; all_gather (P-1) * bytes of `in`; reduce_scatter_sum (P-1)/P * bytes of `in`; all_reduce 2 (P-1)/P * bytes
  /// (a ring, rounded down); broadcast (P-1) * bytes at the root and nothing elsewhere; send its bytes.
  int64_t bytes_sent() const { return bytes_sent_; }

  /// From now on the watchdog knows of this group's collectives.
  void report_to(std::unique_ptr<GroupProgress> progress) { progress_ = std::move(progress); }
  /// Tells the watchdog that this rank is in a collective of the group, as long as the object lives. The collectives
  /// above do it themselves; a rank that skips one with nothing to send must not count it.
  GroupProgress::Call enter(const std::string& operation, int64_t bytes) { return {progress_.get(), operation, bytes}; }

 protected:
  enum class ReduceOp { kSum, kMax };

  Communicator(std::string name, int rank, int size, at::Device device)
      : name_(std::move(name)), rank_(rank), size_(size), device_(device) {}

  /// What the watchdog knows of the group; null where nobody asked.
  const GroupProgress* progress() const { return progress_.get(); }

  // The transports, called with checked arguments. Element counts are above zero where every rank has the same count.
  virtual void do_all_reduce(const at::Tensor& tensor, ReduceOp op) = 0;
  virtual void do_broadcast(const at::Tensor& tensor, int root) = 0;
  virtual void do_all_gather(const at::Tensor& out, const at::Tensor& in) = 0;
  virtual void do_reduce_scatter_sum(const at::Tensor& out, const at::Tensor& in) = 0;
  /// Counts in bytes.
  virtual void do_all_to_all_v(const at::Tensor& out, const at::Tensor& in, const std::vector<int64_t>& recv_bytes,
                               const std::vector<int64_t>& send_bytes) = 0;
  virtual void do_send(const at::Tensor& tensor, int to);
  virtual void do_receive(const at::Tensor& tensor, int from);
  virtual void do_wait_sent() {}
  virtual void do_barrier() = 0;

 private:
  void check_peer(const char* operation, const at::Tensor& tensor, int peer) const;
  void all_reduce(const char* operation, const at::Tensor& tensor, ReduceOp op);
  void check_tensor(const char* operation, const at::Tensor& tensor) const;

  std::string name_;
  int rank_;
  int size_;
  at::Device device_;
  int64_t bytes_sent_ = 0;
  std::unique_ptr<GroupProgress> progress_;
};

/// The group of one rank: reductions do nothing, outputs are copies of inputs. Needs neither MPI nor NCCL.
class LocalCommunicator final : public Communicator {
 public:
  explicit LocalCommunicator(std::string name, at::Device device = at::kCPU)
      : Communicator(std::move(name), 0, 1, device) {}

 private:
  void do_all_reduce(const at::Tensor&, ReduceOp) override {}
  void do_broadcast(const at::Tensor&, int) override {}
  void do_all_gather(const at::Tensor& out, const at::Tensor& in) override;
  void do_reduce_scatter_sum(const at::Tensor& out, const at::Tensor& in) override;
  void do_all_to_all_v(const at::Tensor& out, const at::Tensor& in, const std::vector<int64_t>&,
                       const std::vector<int64_t>&) override;
  void do_barrier() override {}
};

}  // namespace moetune
