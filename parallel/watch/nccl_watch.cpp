#include "parallel/watch/nccl_watch.h"

#include <c10/cuda/CUDAFunctions.h>
#include <cuda_runtime.h>
#include <nccl.h>

#include <chrono>

#include "parallel/base/error.h"

namespace moetune {
namespace {

/// Collectives that are followed at a time; those beyond are not, until the oldest are finished.
constexpr size_t kMostEvents = 512;
constexpr auto kPeriod = std::chrono::milliseconds(250);

}  // namespace

NcclWatch::NcclWatch(RankProgress& progress, c10::Device device)
    : progress_(progress), device_(device), thread_([this] { run(); }) {}

NcclWatch::~NcclWatch() {
  done_ = true;
  thread_.join();
  for (const Enqueued& each : enqueued_) cudaEventDestroy(each.finished);
  for (const cudaEvent_t event : free_events_) cudaEventDestroy(event);
}

void NcclWatch::add(ncclComm* comm, const std::string& group_name) {
  const std::lock_guard lock(mutex_);
  groups_[comm] = group_name;
}

void NcclWatch::remove(ncclComm* comm) {
  const std::lock_guard lock(mutex_);
  groups_.erase(comm);
}

void NcclWatch::enqueued(const Collective& collective, CUstream_st* stream) {
  const std::lock_guard lock(mutex_);
  if (broken_) return;
  cudaEvent_t event = nullptr;
  if (free_events_.empty() && enqueued_.size() == kMostEvents) take_finished();
  if (!free_events_.empty()) {
    event = free_events_.back();
    free_events_.pop_back();
  } else if (enqueued_.size() == kMostEvents ||
             cudaEventCreateWithFlags(&event, cudaEventDisableTiming) != cudaSuccess) {
    return;
  }
  if (cudaEventRecord(event, stream) == cudaSuccess) {
    enqueued_.push_back({collective, event});
  } else {
    free_events_.push_back(event);
  }
}

void NcclWatch::take_finished() {
  while (!broken_ && !enqueued_.empty()) {
    const cudaError_t result = cudaEventQuery(enqueued_.front().finished);
    if (result == cudaErrorNotReady) {
      cudaGetLastError();  // "not ready" is no error, but CUDA would report it to the next who asks
      break;
    }
    if (result != cudaSuccess) {
      broken_ = true;
      break;
    }
    free_events_.push_back(enqueued_.front().finished);
    enqueued_.pop_front();
  }
}

void NcclWatch::look_for_errors() {
  for (const auto& [comm, name] : groups_) {
    ncclResult_t error = ncclSuccess;
    if (ncclCommGetAsyncError(comm, &error) != ncclSuccess || error == ncclSuccess || error == ncclInProgress) continue;
    progress_.set_transport_error(str("group ", name, ": ", ncclGetErrorString(error), ": ", ncclGetLastError(comm),
                                      "; NCCL_DEBUG=WARN says more"));
  }
}

void NcclWatch::run() {
  c10::cuda::set_device(device_.index());
  while (!done_) {
    {
      const std::lock_guard lock(mutex_);
      take_finished();
      look_for_errors();
      progress_.set_unfinished(broken_ || enqueued_.empty() ? std::nullopt
                                                            : std::optional<Collective>(enqueued_.front().collective));
    }
    std::this_thread::sleep_for(kPeriod);
  }
}

}  // namespace moetune
