#include "trainer/update/host_window.h"

#include <algorithm>

#include "parallel/base/error.h"
#include "parallel/device/host_memory.h"

namespace moetune {

HostWindow::Way::Way(at::Device device, const Traffic& traffic) : stream(device) {
  for (at::Tensor& buffer : buffers) {
    buffer = host_bytes(bytes(traffic) / kBuffers, /*pin=*/device.is_cuda()).view(traffic.type);
  }
}

HostWindow::~HostWindow() {
  for (const Way* way : {&in_, &out_}) {
    for (const StreamPoint& point : way->done) point.wait();
  }
}

int64_t HostWindow::bytes(const Traffic& traffic) {
  return kBuffers * std::min(kNumbers, traffic.longest) * static_cast<int64_t>(c10::elementSize(traffic.type));
}

at::Tensor HostWindow::Way::buffer(int64_t turn, int64_t count) {
  const at::Tensor& held = buffers[turn % kBuffers];
  MT_CHECK(count <= held.numel(), count, " numbers in a window of ", held.numel());
  return held.narrow(0, 0, count);
}

void HostWindow::fetch(const at::Tensor& numbers) {
  MT_CHECK(fetched_ - taken_ < kBuffers, "a third fetch while two are not taken");
  const at::Tensor here = in_.buffer(fetched_, numbers.numel());
  const int64_t turn = fetched_++ % kBuffers;
  fetched_counts_[turn] = numbers.numel();
  in_.done[turn] = in_.stream.run({}, [&] { here.copy_(numbers, /*non_blocking=*/true); });
}

at::Tensor HostWindow::take() {
  MT_CHECK(taken_ < fetched_, "nothing was fetched");
  const int64_t turn = taken_++ % kBuffers;
  in_.done[turn].wait();
  return in_.buffer(turn, fetched_counts_[turn]);
}

at::Tensor HostWindow::place(int64_t count) {
  out_.done[placed_ % kBuffers].wait();
  return out_.buffer(placed_++, count);
}

void HostWindow::send(const at::Tensor& numbers, const at::Tensor& to) {
  sent_ = out_.stream.run({}, [&] { to.copy_(numbers, /*non_blocking=*/true); });
  out_.done[(placed_ - 1) % kBuffers] = sent_;
}

}  // namespace moetune
