#include <sched.h>

#include <atomic>
#include <chrono>
#include <mutex>
#include <thread>
#include <vector>

#include "parallel/watch/rank_progress.h"
#include "tests/support/catch.h"

using namespace moetune;
using namespace std::chrono_literals;

namespace {

/// The calling thread runs on the first CPU that it may run on, and on no other.
void share_one_cpu() {
  cpu_set_t allowed, first;
  sched_getaffinity(0, sizeof allowed, &allowed);
  CPU_ZERO(&first);
  for (int cpu = 0; cpu < CPU_SETSIZE && CPU_COUNT(&first) == 0; ++cpu) {
    if (CPU_ISSET(cpu, &allowed)) CPU_SET(cpu, &first);
  }
  sched_setaffinity(0, sizeof first, &first);
}

}  // namespace

TEST_CASE("a thread that only looks is busy on a CPU that it shares, one that waits for a lock is not") {
  constexpr int kLooking = 24;  // of one CPU each has less than the twentieth that counts as awake
  constexpr auto kWhile = 600ms;
  std::atomic<int> started = 0;
  std::atomic<bool> stop = false;
  std::mutex held;
  held.lock();
  std::vector<double> busy_s(kLooking + 1);
  std::vector<std::thread> threads;
  for (int i = 0; i <= kLooking; ++i) {
    threads.emplace_back([&, i] {
      share_one_cpu();
      const WorkingThread self;
      ++started;
      while (started <= kLooking) std::this_thread::yield();
      const double begin_s = self.busy_s();
      if (i == kLooking) {
        const std::lock_guard wait(held);
      } else {
        while (!stop) std::this_thread::yield();
      }
      busy_s[i] = self.busy_s() - begin_s;
    });
  }
  while (started <= kLooking) std::this_thread::sleep_for(1ms);
  std::this_thread::sleep_for(kWhile);
  stop = true;
  for (int i = 0; i < kLooking; ++i) threads[i].join();
  held.unlock();
  threads.back().join();
  for (int i = 0; i < kLooking; ++i) CHECK(busy_s[i] > 0.5);
  CHECK(busy_s[kLooking] < 0.05);
}
