#include "parallel/device/stream_timer.h"

#include <ATen/cuda/CUDAEvent.h>
#include <c10/cuda/CUDAStream.h>

#include "parallel/base/clock.h"

namespace moetune {

/// Begin and end of each piece, in a row; kept for the next round.
struct StreamTimer::Events {
  std::vector<std::unique_ptr<at::cuda::CUDAEvent>> all;
  size_t used = 0;

  void record(c10::Device device) {
    if (used == all.size()) all.push_back(std::make_unique<at::cuda::CUDAEvent>(cudaEventDefault));
    all[used++]->record(c10::cuda::getCurrentCUDAStream(device.index()));
  }
};

StreamTimer::StreamTimer(c10::Device device) : device_(device) {
  if (device.is_cuda()) events_ = std::make_unique<Events>();
}

StreamTimer::~StreamTimer() = default;

void StreamTimer::begin() {
  if (events_) events_->record(device_);
  else begun_ = std::chrono::steady_clock::now();
}

void StreamTimer::end() {
  if (events_) events_->record(device_);
  else seconds_ += seconds_since(begun_);
}

double StreamTimer::take_s() {
  double seconds = seconds_;
  seconds_ = 0.0;
  if (!events_ || events_->used == 0) return seconds;
  events_->all[events_->used - 1]->synchronize();
  for (size_t i = 0; i + 1 < events_->used; i += 2) {
    seconds += 1e-3 * static_cast<double>(events_->all[i]->elapsed_time(*events_->all[i + 1]));
  }
  events_->used = 0;
  return seconds;
}

}  // namespace moetune
