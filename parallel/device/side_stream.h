// Work beside a device's current stream: a CUDA stream of its own; on a CPU the work is done at once.
//
//   SideStream side(device);
//   StreamPoint ready = side.run(StreamPoint::of_current(device), [&] { buffer.copy_(pinned, true); });
//   ready.hold_current();  // the current stream goes on when the work is done; the host does not wait
#pragma once

#include <ATen/core/Tensor.h>
#include <c10/core/Device.h>

#include <functional>
#include <memory>

namespace moetune {

class SideStream;

/// A point in the work of a stream; of no stream (default, or on a CPU) it is always reached.
class StreamPoint {
 public:
  StreamPoint() = default;
  /// Behind all that was given to the current stream of `device` so far.
  static StreamPoint of_current(c10::Device device);
  /// Work given to the current stream from now on waits for the point.
  void hold_current() const;
  /// The host waits for it.
  void wait() const;
  /// So does work given to `stream`.
  void hold(SideStream& stream) const;

 private:
  c10::Device device_ = c10::Device(c10::kCPU);
  struct Event;
  std::shared_ptr<Event> event_;
};

class SideStream {
 public:
  explicit SideStream(c10::Device device);
  ~SideStream();
  /// Gives `work` to the side stream, to begin once `after` is reached; returns the point behind it. Inside, the side
  /// stream is the current one. Memory that the work touches must stay until the returned point is reached.
  StreamPoint run(const StreamPoint& after, const std::function<void()>& work);
  /// The memory of a tensor that was allocated for another stream is not given to anyone else before all work here so
  /// far is done.
  void keep_until_done(const at::Tensor& tensor);

 private:
  struct Stream;
  c10::Device device_;
  std::unique_ptr<Stream> stream_;  // null on a CPU
};

}  // namespace moetune
