// Counts what torch's CPU allocator hands out on this thread: what tensors take, without libraries, files and the heap.
//
//   auto count = std::make_shared<MemoryCount>();
//   c10::DebugInfoGuard guard(c10::DebugInfoKind::PROFILER_STATE, count);
//   ...
//   CHECK(count->peak <= bound);
#pragma once

#include <c10/core/Allocator.h>
#include <c10/util/ThreadLocalDebugInfo.h>

#include <algorithm>
#include <cstdint>
#include <functional>
#include <memory>

namespace moetune {

class MemoryCount final : public c10::MemoryReportingInfoBase {
 public:
  void reportMemoryUsage(void*, int64_t bytes, size_t, size_t, c10::Device) override {
    peak = std::max(peak, now += bytes);
    largest = std::max(largest, bytes);
  }
  bool memoryProfilingEnabled() const override { return true; }
  int64_t now = 0, peak = 0;
  int64_t largest = 0;  ///< of one tensor
};

/// Most bytes of tensors that `work` had at a time, beyond those that were there before.
inline int64_t peak_tensor_bytes(const std::function<void()>& work) {
  auto count = std::make_shared<MemoryCount>();
  c10::DebugInfoGuard guard(c10::DebugInfoKind::PROFILER_STATE, count);
  work();
  return count->peak;
}

}  // namespace moetune
