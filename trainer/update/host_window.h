// Pieces of a device's vectors as the host sees them: each comes to one of two pinned buffers while the host works on
// the one before, and what the host makes of it goes back from another pair, on streams of their own.
//
//   HostWindow window(device, {at::kFloat, longest}, {at::kBFloat16, longest});
//   window.fetch(gradient.narrow(0, 0, n));
//   const at::Tensor here = window.take();                    // there now
//   window.fetch(gradient.narrow(0, n, m));                   // comes while the host reads `here`
//   const at::Tensor fresh = window.place(n);                 // to be written
//   window.send(fresh, weights.narrow(0, 0, n));
//   window.sent().hold_current();                             // what reads `weights` waits
//
// For one thread at a time.
#pragma once

#include <ATen/core/Tensor.h>

#include <array>
#include <cstdint>

#include "parallel/device/side_stream.h"

namespace moetune {

class HostWindow {
 public:
  static constexpr int64_t kNumbers = int64_t{1} << 24;  ///< of a piece, at the most
  static constexpr int kBuffers = 2;                     ///< each way

  /// What passes one way.
  struct Traffic {
    at::ScalarType type;
    int64_t longest = 0;  ///< numbers of the longest vector that comes or goes in pieces; 0: nothing does
  };
  HostWindow(at::Device device, const Traffic& in, const Traffic& out) : in_(device, in), out_(device, out) {}
  /// Waits for what is on its way.
  ~HostWindow();
  /// Of host memory, for one way.
  static int64_t bytes(const Traffic& traffic);

  /// Begins to bring numbers [n] of the device, which are there. What take() returned two fetches ago is overwritten.
  void fetch(const at::Tensor& numbers);
  /// The numbers that were fetched first of those not taken yet, when they are here.
  at::Tensor take();
  /// A place [n] on the host for numbers that are to go. Waits for what went from there before.
  at::Tensor place(int64_t count);
  /// Begins to copy the last place() to [n] on the device.
  void send(const at::Tensor& numbers, const at::Tensor& to);
  /// Behind all that was sent.
  StreamPoint sent() const { return sent_; }

 private:
  struct Way {
    Way(at::Device device, const Traffic& traffic);
    at::Tensor buffer(int64_t turn, int64_t count);
    SideStream stream;
    std::array<at::Tensor, kBuffers> buffers;
    std::array<StreamPoint, kBuffers> done;
  };

  Way in_, out_;
  std::array<int64_t, kBuffers> fetched_counts_{};
  int64_t fetched_ = 0, taken_ = 0, placed_ = 0;
  StreamPoint sent_;
};

}  // namespace moetune
