#include "parallel/device/side_stream.h"

#include <ATen/cuda/CUDAEvent.h>
#include <c10/cuda/CUDACachingAllocator.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>

namespace moetune {

struct StreamPoint::Event {
  at::cuda::CUDAEvent cuda;
};

StreamPoint StreamPoint::of_current(c10::Device device) {
  StreamPoint point;
  if (!device.is_cuda()) return point;
  point.device_ = device;
  point.event_ = std::make_shared<Event>();
  point.event_->cuda.record(c10::cuda::getCurrentCUDAStream(device.index()));
  return point;
}

void StreamPoint::hold_current() const {
  if (event_) event_->cuda.block(c10::cuda::getCurrentCUDAStream(device_.index()));
}

void StreamPoint::wait() const {
  if (event_) event_->cuda.synchronize();
}

struct SideStream::Stream {
  c10::cuda::CUDAStream cuda;
};

SideStream::SideStream(c10::Device device) : device_(device) {
  if (device.is_cuda()) {
    stream_ = std::make_unique<Stream>(Stream{c10::cuda::getStreamFromPool(/*isHighPriority=*/true, device.index())});
  }
}

SideStream::~SideStream() = default;

StreamPoint SideStream::run(const StreamPoint& after, const std::function<void()>& work) {
  if (!stream_) {
    work();
    return {};
  }
  const c10::cuda::CUDAStreamGuard guard(stream_->cuda);
  after.hold_current();
  work();
  return StreamPoint::of_current(device_);
}

void StreamPoint::hold(SideStream& stream) const {
  stream.run(*this, [] {});
}

void SideStream::keep_until_done(const at::Tensor& tensor) {
  if (stream_) c10::cuda::CUDACachingAllocator::recordStream(tensor.storage().data_ptr(), stream_->cuda);
}

}  // namespace moetune
