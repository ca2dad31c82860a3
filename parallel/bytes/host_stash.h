// Tensors that wait in pinned host memory while the device has other work: block inputs between the way down and the
// way up.
//
//   HostStash stash(device);
//   // copies out beside the current stream; the device memory is free when the copy is done
//   stash.put(layer, std::move(x_TD));
//   stash.fetch(layer - 1);  // begins to copy back
//   at::Tensor x_TD = stash.take(layer);  // on the device, in order on the current stream
//
// Host memory is allocated at the first put of a key and kept for the next steps.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <map>

#include "parallel/device/side_stream.h"

namespace moetune {

class HostStash {
 public:
  explicit HostStash(c10::Device device) : device_(device), out_(device), in_(device) {}

  void put(int64_t key, at::Tensor tensor);
  void fetch(int64_t key);
  /// What was put under the key, which is free again; fetches it now if nobody did.
  at::Tensor take(int64_t key);

 private:
  struct Entry {
    at::Tensor host;    // uint8, at least as long as the tensor
    at::Tensor shaped;  // the part of it that holds the tensor, in its dtype and shape
    at::Tensor device;  // defined from fetch to take
    StreamPoint written, ready;
  };

  c10::Device device_;
  SideStream out_, in_;
  std::map<int64_t, Entry> entries_;
};

}  // namespace moetune
