// Large host memory that a GPU copies from at full rate: mapped in huge pages, first touched by all threads at once, then pinned.
//
//   at::Tensor bytes = host_bytes(int64_t{6} << 30, /*pin=*/true);     // uint8, zeros
//
// torch's own pinned memory rounds sizes up to a power of two and touches pages from one thread: for 100 GB that is twice the memory
// and minutes.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>

namespace moetune {

/// A uint8 tensor [num_bytes] of zeros in host memory of its own, unpinned and unmapped with its last reference. `pin`: registered with
/// CUDA. Throws std::bad_alloc where the host has too little memory, UserError where CUDA refuses to pin it.
at::Tensor host_bytes(int64_t num_bytes, bool pin);

}  // namespace moetune
