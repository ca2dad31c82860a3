// Small copies from pinned host memory to a GPU that others do not hold up.
//
//   copy_from_pinned(adapter, host_shard);      // in order on the current stream
//
// A GPU's copy engine serves what it is given in that order, whatever the streams: behind a layer of experts that
// streams in, the megabyte of the next layer's adapters waits for gigabytes, and the compute stream with it. A kernel
// reads them over the bus beside the engine. (Copies of a few kilobytes travel with the commands; they need no such
// care.)
#pragma once

#include <ATen/core/Tensor.h>

namespace moetune {

/// `to` gets the numbers of `from`, of the same type and number, both contiguous, `from` anywhere: pinned, and `to` on
/// a GPU, by a kernel; otherwise as Tensor::copy_ does it. Where it is pinned `from` must stay until the stream is
/// there.
void copy_from_pinned(const at::Tensor& to, const at::Tensor& from);

}  // namespace moetune
