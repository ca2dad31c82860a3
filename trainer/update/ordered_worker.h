// One thread beside the main one that does jobs in the order in which they were posted, under whatever the main thread
// does meanwhile.
//
//   OrderedWorker worker(/*num_threads=*/4);
//   const int64_t ticket = worker.post([&] { at::add_out(...); });
//   worker.wait(ticket);                      // this job and all before it are done; what a job threw is thrown here
//
// Jobs work without autograd, on the CPU or beside a GPU's main stream; collectives stay with the main thread (MPI
// allows one thread to call it).
#pragma once

#include <c10/core/Device.h>

#include <condition_variable>
#include <cstdint>
#include <deque>
#include <exception>
#include <functional>
#include <mutex>
#include <thread>

namespace moetune {

class OrderedWorker {
 public:
  /// `num_threads`: how many threads LibTorch may use for one operation of a job; that of other threads stays what it
  /// is. `device`: whose streams jobs may use.
  explicit OrderedWorker(int num_threads, c10::Device device = c10::kCPU);
  /// Ends the job at hand and drops the others.
  ~OrderedWorker();
  OrderedWorker(const OrderedWorker&) = delete;
  OrderedWorker& operator=(const OrderedWorker&) = delete;

  /// Returns at once. After a job has thrown, later ones are not done.
  int64_t post(std::function<void()> job);
  void wait(int64_t ticket);
  /// Whether wait() would return, or throw, at once.
  bool is_done(int64_t ticket);

 private:
  void work(int num_threads, c10::Device device);

  std::mutex mutex_;
  std::condition_variable changed_;
  std::deque<std::function<void()>> jobs_;
  int64_t posted_ = 0, done_ = 0;
  bool ready_ = false, stops_ = false;
  std::exception_ptr failure_;
  std::thread thread_;
};

}  // namespace moetune
