// How much memory there is on a device, and how much of it this process has used at the most: on a GPU what its
// allocator handed out, on a CPU the resident set.
#pragma once

#include <c10/core/Device.h>

#include <cstdint>

namespace moetune {

/// Peak bytes since the start of the process: of torch's allocator on a GPU, VmHWM on a CPU (0 where the system does
/// not say).
int64_t peak_memory_bytes(c10::Device device);

/// Gives what the device's allocator holds and nobody uses back to the device.
void free_cached_memory(c10::Device device);

/// Bytes of memory of the current device of this kind, free or not; 0 for CPUs, and where there is no such device.
int64_t device_memory_bytes(c10::DeviceType kind);

/// Of these, what this process has or may still get: not what others and libraries have taken.
int64_t available_memory_bytes(c10::Device device);

/// Bytes of memory of this host, or that it allows this process where that is less; 0 where the system does not say.
int64_t host_memory_bytes();

}  // namespace moetune
