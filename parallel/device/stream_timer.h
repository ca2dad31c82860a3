// How long pieces of work take on the current stream of a device, without making the host wait for any of them.
//
//   { StreamTimer::Piece piece(timer);  exchange.out(...); }
//   ... at the end of the step, when the host has waited for the stream anyway:
//   step.exchange_s = timer.take_s();
#pragma once

#include <c10/core/Device.h>

#include <chrono>
#include <memory>
#include <vector>

namespace moetune {

class StreamTimer {
 public:
  explicit StreamTimer(c10::Device device);
  ~StreamTimer();

  /// A piece of work: from construction to destruction, in the order of the current stream. Pieces of one timer do not
  /// nest.
  class Piece {
   public:
    explicit Piece(StreamTimer& timer) : timer_(timer) { timer_.begin(); }
    ~Piece() { timer_.end(); }
    Piece(const Piece&) = delete;
    Piece& operator=(const Piece&) = delete;

   private:
    StreamTimer& timer_;
  };

  /// Seconds of all pieces since the last call. Waits for the last of them on a GPU.
  double take_s();

 private:
  struct Events;
  void begin();
  void end();

  c10::Device device_;
  double seconds_ = 0.0;  // on a CPU
  std::chrono::steady_clock::time_point begun_;
  std::unique_ptr<Events> events_;
};

}  // namespace moetune
