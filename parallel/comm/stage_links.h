// What passes between neighbouring stages of a pipeline: activations down to the next stage, gradients up to the one
// before, each rank with those at its own place of the other axes.
//
//   StageLinks links(launch, mesh);           // every rank of the job
//   links.send_down(x_TD);                    // goes on at once; the memory is held until it has left
//   at::Tensor x_TD = links.receive_down({T, D}, at::kBFloat16);
//   links.settle();                           // behind a step
//
// Each direction between two stages has a group of its own, and on a GPU sends go out beside the compute stream: a send
// that waits for its receiver holds up nothing, so stages that send to each other at once go on. A greeting over each
// link connects it first: NCCL connects two ranks with their first message, and the host of the one that sends waits
// for the other to receive.
#pragma once

#include <memory>

#include "parallel/comm/mesh.h"
#include "parallel/device/side_stream.h"
#include "parallel/device/stream_timer.h"

namespace moetune {

class StageLinks {
 public:
  /// All ranks of the job call it. Must not outlive the launch.
  StageLinks(Launch& launch, const Mesh& mesh);

  /// To the next stage; not on the last one.
  void send_down(const at::Tensor& x) { send(*down_out_, x); }
  /// From the stage before; not on the first one. On the device, in order on the current stream.
  at::Tensor receive_down(at::IntArrayRef shape, at::ScalarType dtype) { return receive(*down_in_, shape, dtype); }
  /// To the stage before; not on the first one.
  void send_up(const at::Tensor& d_x) { send(*up_out_, d_x); }
  /// From the next stage; not on the last one.
  at::Tensor receive_up(at::IntArrayRef shape, at::ScalarType dtype) { return receive(*up_in_, shape, dtype); }
  /// All that was sent has left.
  void settle();

  /// Payload bytes that this rank sent to its neighbours so far.
  int64_t bytes_sent() const;
  /// Seconds that the current stream stood in receive_down() and receive_up(), waiting for neighbours included, and in
  /// pieces of others on waits(), since the last call.
  double take_wait_s() { return waits_.take_s(); }
  /// For what else holds a stage up until the others are there.
  StreamTimer& waits() { return waits_; }

 private:
  /// One direction between two stages; the lower stage's rank comes first.
  struct Link {
    /// `sends`: this rank does. Both call it.
    Link(std::unique_ptr<Communicator> group, at::Device device, bool sends);
    std::unique_ptr<Communicator> group;
    SideStream beside;
    int64_t greeting_bytes = 0;
  };
  void send(Link& link, const at::Tensor& tensor);
  at::Tensor receive(Link& link, at::IntArrayRef shape, at::ScalarType dtype);

  std::unique_ptr<Link> down_in_, down_out_, up_in_, up_out_;  ///< null where there is no such neighbour
  StreamTimer waits_;
};

}  // namespace moetune
