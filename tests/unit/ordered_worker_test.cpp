#include "trainer/update/ordered_worker.h"

#include <ATen/Parallel.h>
#include <torch/types.h>

#include <atomic>
#include <chrono>
#include <stdexcept>
#include <thread>
#include <vector>

#include "tests/support/catch.h"

using namespace moetune;

TEST_CASE("jobs are done in order, and waiting waits for no more than was asked", "[worker]") {
  const int threads = at::get_num_threads();
  OrderedWorker worker(threads + 1);
  // Neither this thread nor those to come see the worker's number.
  CHECK(at::get_num_threads() == threads);
  int of_another = 0;
  std::thread([&] { of_another = at::get_num_threads(); }).join();
  CHECK(of_another == threads);
  std::vector<int> order;
  std::atomic<bool> may_end = false;
  int inside = 0;
  bool with_graph = true;
  for (int i = 0; i < 100; ++i) worker.post([&order, i] { order.push_back(i); });
  const int64_t last = worker.post([&] {
    inside = at::get_num_threads();
    with_graph = at::GradMode::is_enabled();
  });
  const int64_t blocked = worker.post([&] {
    while (!may_end) std::this_thread::yield();
  });
  worker.wait(last);
  CHECK(worker.is_done(last));
  CHECK(!worker.is_done(blocked));
  REQUIRE(order.size() == 100);
  for (int i = 0; i < 100; ++i) CHECK(order[i] == i);
  CHECK(inside == threads + 1);
  CHECK(!with_graph);
  may_end = true;
  worker.wait(blocked);
}

TEST_CASE("what a job threw is thrown where it is waited for, and nothing follows it", "[worker]") {
  OrderedWorker worker(1);
  bool followed = false;
  const int64_t first = worker.post([] {});
  worker.wait(first);
  worker.post([] { throw std::runtime_error("no room"); });
  const int64_t behind = worker.post([&] { followed = true; });
  CHECK_THROWS_WITH(worker.wait(behind), "no room");
  CHECK(worker.is_done(behind));
  CHECK(!followed);
}

TEST_CASE("leaving ends the job at hand and drops what was not begun", "[worker]") {
  std::atomic<bool> began = false, leaving = false, ended = false, followed = false;
  {
    OrderedWorker worker(1);
    worker.post([&] {
      began = true;
      while (!leaving) std::this_thread::yield();
      std::this_thread::sleep_for(std::chrono::milliseconds(50));
      ended = true;
    });
    while (!began) std::this_thread::yield();
    worker.post([&] { followed = true; });
    leaving = true;
  }
  CHECK(ended);
  CHECK(!followed);
}
