#include "trainer/update/ordered_worker.h"

#include <ATen/Parallel.h>
#include <c10/cuda/CUDAFunctions.h>
#include <torch/types.h>

#include <utility>

namespace moetune {

OrderedWorker::OrderedWorker(int num_threads, at::Device device) {
  // Setting a thread's number also sets that of threads to come: this puts it back.
  const int others = at::get_num_threads();
  thread_ = std::thread([this, num_threads, device] { work(num_threads, device); });
  std::unique_lock lock(mutex_);
  changed_.wait(lock, [&] { return ready_; });
  at::set_num_threads(others);
}

OrderedWorker::~OrderedWorker() {
  {
    std::lock_guard lock(mutex_);
    stops_ = true;
  }
  changed_.notify_all();
  thread_.join();
}

int64_t OrderedWorker::post(std::function<void()> job) {
  int64_t ticket = 0;
  {
    std::lock_guard lock(mutex_);
    jobs_.push_back(std::move(job));
    ticket = ++posted_;
  }
  changed_.notify_all();
  return ticket;
}

void OrderedWorker::wait(int64_t ticket) {
  std::unique_lock lock(mutex_);
  changed_.wait(lock, [&] { return done_ >= ticket || failure_; });
  if (failure_) std::rethrow_exception(failure_);
}

bool OrderedWorker::is_done(int64_t ticket) {
  const std::lock_guard lock(mutex_);
  return done_ >= ticket || failure_;
}

void OrderedWorker::work(int num_threads, at::Device device) {
  // Each thread has a device of its own: the first one, and a context there, if none is named.
  if (device.is_cuda()) c10::cuda::set_device(device.index());
  at::get_num_threads();  // a thread's first question gives it the number of all: it must not come after its own
  at::set_num_threads(num_threads);
  at::NoGradGuard no_grad;
  std::unique_lock lock(mutex_);
  ready_ = true;
  changed_.notify_all();
  while (true) {
    changed_.wait(lock, [&] { return stops_ || (!jobs_.empty() && !failure_); });
    if (stops_) return;
    const std::function<void()> job = std::move(jobs_.front());
    jobs_.pop_front();
    lock.unlock();
    std::exception_ptr failure;
    try {
      job();
    } catch (...) {
      failure = std::current_exception();
    }
    lock.lock();
    if (failure) failure_ = failure;
    else ++done_;
    changed_.notify_all();
  }
}

}  // namespace moetune
