#include "parallel/bytes/host_stash.h"

#include <ATen/ATen.h>

#include "parallel/base/error.h"
#include "parallel/device/host_memory.h"

namespace moetune {

void HostStash::put(int64_t key, at::Tensor tensor) {
  MT_CHECK(tensor.is_contiguous() && tensor.device() == device_, "stash ", key, ": a tensor ", tensor.sizes(), " on ",
           tensor.device());
  Entry& entry = entries_[key];
  if (entry.device.defined()) {  // fetched by a pass that failed, and never taken
    entry.ready.hold(out_);
    entry.device = at::Tensor();
  }
  const int64_t bytes = static_cast<int64_t>(tensor.nbytes());
  if (!entry.host.defined() || entry.host.numel() < bytes) entry.host = host_bytes(bytes, device_.is_cuda());
  entry.shaped = entry.host.narrow(0, 0, bytes).view(tensor.scalar_type()).view(tensor.sizes());
  entry.written = out_.run(StreamPoint::of_current(device_), [&] {
    entry.shaped.copy_(tensor, /*non_blocking=*/true);
    out_.keep_until_done(tensor);
  });
}

void HostStash::fetch(int64_t key) {
  Entry& entry = entries_.at(key);
  MT_CHECK(entry.shaped.defined(), "nothing is stashed under ", key);
  if (entry.device.defined()) return;
  entry.device = at::empty(entry.shaped.sizes(), entry.shaped.options().device(device_));
  // The memory may just have been given back by work of the current stream: the copy waits for that too.
  entry.written.hold(in_);
  entry.ready = in_.run(StreamPoint::of_current(device_), [&] {
    entry.device.copy_(entry.shaped, /*non_blocking=*/true);
    in_.keep_until_done(entry.device);
  });
}

at::Tensor HostStash::take(int64_t key) {
  fetch(key);
  Entry& entry = entries_.at(key);
  entry.ready.hold_current();
  at::Tensor taken = std::move(entry.device);
  entry.device = at::Tensor();
  entry.shaped = at::Tensor();
  return taken;
}

}  // namespace moetune
