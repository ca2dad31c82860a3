// Large host memory that a GPU copies from at full rate: mapped in huge pages, first touched by all threads at once,
// then pinned.
//
//   at::Tensor bytes = host_bytes(int64_t{6} << 30, /*pin=*/true);     // uint8, zeros
//
// torch's own pinned memory rounds sizes up to a power of two and touches pages from one thread: for 100 GB that is
// twice the memory and minutes.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>

namespace moetune {

/// A uint8 tensor [num_bytes] of zeros in host memory of its own, unpinned and unmapped with its last reference. `pin`:
/// registered with CUDA. Throws std::bad_alloc where the host has too little memory, UserError where CUDA refuses to
/// pin it.
at::Tensor host_bytes(int64_t num_bytes, bool pin);

/// While it lives, what malloc gives out from 128 KiB on goes back to the system when it is freed. Otherwise malloc
/// raises that bound to 32 MiB as it goes, and its heap keeps the holes of freed tensors between small things that
/// stay, as many as tensors were loaded: measured, as much again as the packed weights. Mapping costs time, so it is
/// for loading, not for steps. One at a time.
class ThriftyHeap {
 public:
  ThriftyHeap();
  ~ThriftyHeap();
  ThriftyHeap(const ThriftyHeap&) = delete;
  ThriftyHeap& operator=(const ThriftyHeap&) = delete;
};

}  // namespace moetune
