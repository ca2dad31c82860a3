#include "parallel/device/device_memory.h"

#include <unistd.h>

#include <c10/cuda/CUDACachingAllocator.h>
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAFunctions.h>
#include <cuda_runtime.h>

#include <fstream>
#include <sstream>
#include <string>

namespace moetune {

int64_t peak_memory_bytes(c10::Device device) {
  if (device.is_cuda()) return c10::cuda::CUDACachingAllocator::getDeviceStats(device.index()).allocated_bytes[0].peak;
  std::ifstream status("/proc/self/status");
  for (std::string line; std::getline(status, line);) {
    if (line.rfind("VmHWM:", 0) != 0) continue;
    int64_t kibibytes = 0;
    std::istringstream(line.substr(6)) >> kibibytes;
    return kibibytes * 1024;
  }
  return 0;
}

void free_cached_memory(c10::Device device) {
  if (device.is_cuda()) c10::cuda::CUDACachingAllocator::emptyCache();
}

int64_t device_memory_bytes(c10::DeviceType kind) {
  if (kind != c10::DeviceType::CUDA || c10::cuda::device_count() == 0) return 0;
  size_t free = 0, total = 0;
  C10_CUDA_CHECK(cudaMemGetInfo(&free, &total));
  return static_cast<int64_t>(total);
}

int64_t available_memory_bytes(c10::Device device) {
  if (!device.is_cuda()) return 0;
  size_t free = 0, total = 0;
  C10_CUDA_CHECK(cudaMemGetInfo(&free, &total));
  return static_cast<int64_t>(free) +
         c10::cuda::CUDACachingAllocator::getDeviceStats(device.index()).reserved_bytes[0].current;
}

int64_t host_memory_bytes() {
  const int64_t pages = ::sysconf(_SC_PHYS_PAGES), page = ::sysconf(_SC_PAGESIZE);
  const int64_t all = pages > 0 && page > 0 ? pages * page : 0;
  std::ifstream limit("/sys/fs/cgroup/memory.max");
  int64_t allowed = 0;
  return limit >> allowed && allowed > 0 && allowed < all ? allowed : all;
}

}  // namespace moetune
